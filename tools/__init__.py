"""The workshop: how the embedded models are made and how our own documents are filled."""
