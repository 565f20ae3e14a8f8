"""How a model is trained: a recipe for each kind of model, and the loop and files they share."""
