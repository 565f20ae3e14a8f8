"""Pictures served over HTTP: requests that share batches, and the application around them."""
