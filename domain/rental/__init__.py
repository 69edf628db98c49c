"""Rentals, subscriptions and purchases: who may use a persona, until when, and what that costs."""
