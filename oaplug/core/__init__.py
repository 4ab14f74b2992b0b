"""The words everything else is written in; imports nothing of oaplug but itself."""
