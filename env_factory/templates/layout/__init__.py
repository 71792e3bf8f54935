"""Templates of web pages: what an order asks for, and pages that fulfil it or almost do."""
