"""Small models, files and equations that tests share."""
