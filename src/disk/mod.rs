//! What the operating system knows of a store's files: where they lie, who may use them, and how they
//! are overwritten.

pub(crate) mod access;
mod boundary;
mod medium;
mod wipe;

pub(crate) use boundary::{Boundary, Entry};
pub(crate) use medium::{Medium, Writes};
pub(crate) use wipe::{overwrite, overwrite_open, to_overwrite};
