"""Quality of the predictions on the standard UCI tables, of the product and of what it is compared with."""
