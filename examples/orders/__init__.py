"""An order service on pgqueue: place an order, take the payment, reserve the goods, confirm by mail."""
