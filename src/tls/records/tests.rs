//! Conversations with the engine, legal ones and others.

mod conversation;
mod forgery;
mod hostile;
mod likeness;
