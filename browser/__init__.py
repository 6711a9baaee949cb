"""Tests that look at pages as a person does, in a real browser."""
