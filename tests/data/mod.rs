//! Reading, tokenizing and packing of preference rows, through the public interface.

mod jinja;
mod pack;
mod published;
pub mod quickstart;
mod records;
mod source;
mod templates;
mod tokenize;
mod turns;
