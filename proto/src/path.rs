//! Where in a message something is: `filters[1].typed_config<TcpProxy>.weighted_clusters.#77`.

use std::fmt::{self, Write as _};

use prost_reflect::FieldDescriptor;

/// Map keys come from the peer; this much of one is enough to find it.
const MAX_KEY_CHARS: usize = 64;

/// The steps from the root of a message to the place being looked at.
#[derive(Debug, Default)]
pub(crate) struct Path {
    steps: Vec<Step>,
}

/// One step of a [`Path`].
#[derive(Debug)]
pub(crate) enum Step {
    /// Into a field that the descriptor knows.
    Field(FieldDescriptor),
    /// Into the nth element of a repeated field.
    Index(usize),
    /// Into the value under a map key.
    Key(String),
    /// Into the message of this type inside an `Any`.
    Type(String),
    /// At a field of this number that the descriptor does not know.
    Number(u32),
    /// At a JSON name that the descriptor does not know.
    Name(String),
}

impl Path {
    /// Goes one step down.
    pub(crate) fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Comes back up.
    pub(crate) fn pop(&mut self) {
        self.steps.pop();
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.steps.iter().enumerate() {
            let named = matches!(step, Step::Field(_) | Step::Number(_) | Step::Name(_));
            if named && position > 0 {
                f.write_char('.')?;
            }
            match step {
                Step::Field(field) => f.write_str(field.name())?,
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => write!(f, "[{:?}]", shortened(key))?,
                Step::Type(full_name) => {
                    let name = full_name.rsplit('.').next().unwrap_or(full_name);
                    write!(f, "<{}>", shortened(name).escape_debug())?;
                }
                Step::Number(number) => write!(f, "#{number}")?,
                Step::Name(name) => write!(f, "{}", shortened(name).escape_debug())?,
            }
        }
        Ok(())
    }
}

/// The first [`MAX_KEY_CHARS`] characters.
pub(crate) fn shortened(text: &str) -> &str {
    let end = text
        .char_indices()
        .nth(MAX_KEY_CHARS)
        .map_or(text.len(), |(end, _)| end);
    text.get(..end).unwrap_or(text)
}
