"""Loading a chat model, rendering its chats, generating, steering, and its output matrix."""
