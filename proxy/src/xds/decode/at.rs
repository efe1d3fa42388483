//! Where in a resource the decoder is, so that every error and every remark carries a full path.

use std::cell::{Cell, RefCell};

use crate::config::Invalid;

/// At most so many remarks are kept for one resource; a hostile one could carry millions.
const MAX_NOTES: usize = 64;

/// Fields that were set, are known, and are not honoured; and unknown ones. By path.
#[derive(Debug, Default)]
pub(super) struct Notes {
    paths: RefCell<Vec<String>>,
    /// Some message had more bytes than we understand.
    suspicious: Cell<bool>,
}

impl Notes {
    pub(super) fn push(&self, path: String) {
        let mut all = self.paths.borrow_mut();
        if all.len() < MAX_NOTES && !all.contains(&path) {
            all.push(path);
        }
    }

    /// Whether it is worth looking for unknown fields.
    pub(super) const fn is_suspicious(&self) -> bool {
        self.suspicious.get()
    }

    pub(super) fn into_vec(self) -> Vec<String> {
        self.paths.into_inner()
    }
}

/// A position: a field, perhaps an element of it, inside an outer position.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    outer: Option<&'a Self>,
    field: &'a str,
    element: Element<'a>,
    notes: &'a Notes,
}

#[derive(Clone, Copy, Debug)]
enum Element<'a> {
    None,
    Number(usize),
    Key(&'a str),
}

impl<'a> At<'a> {
    /// The resource itself.
    pub(super) const fn top(notes: &'a Notes) -> Self {
        Self {
            outer: None,
            field: "",
            element: Element::None,
            notes,
        }
    }

    /// A field of this message.
    pub(super) const fn field(&'a self, field: &'a str) -> Self {
        Self {
            outer: Some(self),
            field,
            element: Element::None,
            notes: self.notes,
        }
    }

    /// An element of a repeated field.
    pub(super) const fn item(&'a self, field: &'a str, number: usize) -> Self {
        Self {
            element: Element::Number(number),
            ..self.field(field)
        }
    }

    /// A value of a map field.
    pub(super) const fn key(&'a self, field: &'a str, key: &'a str) -> Self {
        Self {
            element: Element::Key(key),
            ..self.field(field)
        }
    }

    /// The path from the resource to here.
    pub(super) fn path(&self) -> String {
        let mut path = self.outer.map(Self::path).unwrap_or_default();
        if !path.is_empty() && !self.field.is_empty() {
            path.push('.');
        }
        path.push_str(self.field);
        match self.element {
            Element::None => {}
            Element::Number(number) => path.push_str(&format!("[{number}]")),
            Element::Key(key) => path.push_str(&format!("[{key}]")),
        }
        path
    }

    /// An error here.
    pub(super) fn bad(&self, why: impl Into<Box<str>>) -> Invalid {
        Invalid::at(self.path(), why)
    }

    /// An error that something smaller made, put here.
    pub(super) fn wrap(&self, error: Invalid) -> Invalid {
        error.under(&self.path())
    }

    /// Refuses what is set here and would change the meaning if it were passed over.
    pub(super) fn refuse_if(&self, set: bool, why: &str) -> Result<(), Invalid> {
        if set { Err(self.bad(why)) } else { Ok(()) }
    }

    /// Remarks that what is set in `field` is passed over.
    pub(super) fn ignores(&self, field: &str, set: bool) {
        if set {
            self.notes.push(self.field(field).path());
        }
    }

    /// Notes that what was read here does, or may, hold more than was understood. Encoding again
    /// what was decoded and comparing lengths finds that at next to no cost; the descriptors, which
    /// tell where and what it is, take 4 MiB once they are needed.
    pub(super) fn suspect_if(&self, more: bool) {
        if more {
            self.notes.suspicious.set(true);
        }
    }

    /// Remarks that what stands here is passed over.
    pub(super) fn ignored(&self) {
        self.notes.push(self.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_like_the_field_in_the_resource() {
        let notes = Notes::default();
        let top = At::top(&notes);
        let chain = top.item("filter_chains", 2);
        let filter = chain.key("typed_per_filter_config", "envoy.x");
        let field = filter.field("delay");
        assert_eq!(
            field.bad("no").path,
            "filter_chains[2].typed_per_filter_config[envoy.x].delay"
        );
        field.ignores("percentage", true);
        field.ignores("percentage", true);
        field.ignores("unset", false);
        let inner = Invalid::at("base_interval", "must be over 0s");
        assert_eq!(chain.wrap(inner).path, "filter_chains[2].base_interval");
        assert_eq!(
            notes.into_vec(),
            ["filter_chains[2].typed_per_filter_config[envoy.x].delay.percentage"]
        );
    }
}
