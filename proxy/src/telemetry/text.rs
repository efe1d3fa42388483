//! Text of a record: often part of what was received, and then not copied.

use std::ops::Deref;

use http::{HeaderValue, uri::PathAndQuery};

/// A string that may still be in the buffer that it was received in.
#[derive(Clone, Debug)]
pub enum Text {
    Own(String),
    /// The path alone counts.
    Target(PathAndQuery),
    /// Empty if it is not ASCII.
    Value(HeaderValue),
}

impl Default for Text {
    fn default() -> Self {
        Self::Own(String::new())
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Own(text) => text,
            Self::Target(target) => target.path(),
            Self::Value(value) => value.to_str().unwrap_or_default(),
        }
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::Own(text)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::Own(text.to_owned())
    }
}
