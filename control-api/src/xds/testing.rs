//! A world of made-up resources for tests of the protocols.

use std::{collections::BTreeMap, sync::Arc};

use outrigger_proto::any::Any;

use super::published::{Encoded, View};
use crate::translate::ResourceType;

#[derive(Debug, Default, Clone)]
pub(super) struct FakeView {
    revision: u64,
    all: BTreeMap<(ResourceType, String), Arc<Encoded>>,
}

impl FakeView {
    /// The next state, with a resource that says something new, or, without text, without it.
    #[must_use]
    pub(super) fn with(mut self, kind: ResourceType, name: &str, text: Option<&str>) -> Self {
        self.revision += 1;
        let key = (kind, name.to_owned());
        match text {
            None => {
                self.all.remove(&key);
            }
            Some(text) => {
                let any = Any {
                    type_url: kind.url().to_owned(),
                    value: format!("{name}={text}").into_bytes(),
                };
                self.all.insert(key, Arc::new(Encoded::new(any)));
            }
        }
        self
    }

    /// The next state, in which nothing is different.
    #[must_use]
    pub(super) fn again(mut self) -> Self {
        self.revision += 1;
        self
    }

    pub(super) fn version(&self, kind: ResourceType, name: &str) -> String {
        self.get(kind, name).unwrap().version.clone()
    }
}

impl View for FakeView {
    fn revision(&self) -> u64 {
        self.revision
    }

    fn get(&self, kind: ResourceType, name: &str) -> Option<Arc<Encoded>> {
        self.all.get(&(kind, name.to_owned())).cloned()
    }

    fn names(&self, kind: ResourceType) -> Vec<String> {
        let own = self.all.keys().filter(|(own, _)| *own == kind);
        own.map(|(_, name)| name.clone()).collect()
    }
}

/// What a resource says.
pub(super) fn text(any: &Any) -> String {
    String::from_utf8(any.value.clone()).unwrap()
}
