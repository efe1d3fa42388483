//! One state of the world as proxies see it, with what was already made of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::digest;
use outrigger_proto::any::Any;

use crate::{
    hex::hex,
    translate::{self, Changes, ResourceType, Viewer, World},
};

/// A resource and its version.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// Hash of its bytes: a change that makes no difference is not sent (XD-06), and versions mean
    /// the same after a restart (XD-04).
    pub version: String,
    /// The resource.
    pub resource: Any,
}

impl Encoded {
    pub(super) fn new(resource: Any) -> Self {
        let hash = digest::digest(&digest::SHA256, &resource.value);
        let short = hash.as_ref().iter().take(8);
        Self {
            version: hex(short),
            resource,
        }
    }
}

type Shared = HashMap<(ResourceType, String, String), Option<Arc<Encoded>>>;

/// See the module.
#[derive(Debug, Default)]
pub struct Published {
    world: World,
    /// Each shared resource is made once for all proxies.
    made: Mutex<Shared>,
}

impl Published {
    /// Of this world.
    #[must_use]
    pub fn new(world: World) -> Self {
        Self {
            world,
            made: Mutex::default(),
        }
    }

    /// Of a world that follows `before`: what the change did not touch is not made again.
    #[must_use]
    pub fn after(before: &Self, world: World) -> Self {
        let mut kept = Shared::new();
        if let Some(changes) = Changes::between(&before.world, &world) {
            let made = before.made.lock().unwrap_or_else(PoisonError::into_inner);
            let spared = made
                .iter()
                .filter(|((kind, name, _), _)| changes.spare(&world, *kind, name));
            kept.extend(spared.map(|(key, made)| (key.clone(), made.clone())));
        }
        Self {
            world,
            made: Mutex::new(kept),
        }
    }

    /// The world it is of.
    #[must_use]
    pub const fn world(&self) -> &World {
        &self.world
    }
}

/// What one proxy sees.
pub trait View {
    /// Counts the states of the world.
    fn revision(&self) -> u64;
    /// A resource; `None` if there is none of this name.
    fn get(&self, kind: ResourceType, name: &str) -> Option<Arc<Encoded>>;
    /// All names, for who subscribes to all.
    fn names(&self, kind: ResourceType) -> Vec<String>;
}

/// [`Published`] as a certain proxy sees it.
#[derive(Debug, Clone, Copy)]
pub struct ViewOf<'p> {
    /// The state.
    pub published: &'p Published,
    /// The proxy.
    pub viewer: &'p Viewer,
}

impl View for ViewOf<'_> {
    fn revision(&self) -> u64 {
        self.published.world.revision()
    }

    fn get(&self, kind: ResourceType, name: &str) -> Option<Arc<Encoded>> {
        let make = || {
            let resource = translate::resource(&self.published.world, self.viewer, kind, name);
            resource.map(|resource| Arc::new(Encoded::new(resource)))
        };
        let sharing = translate::sharing(&self.published.world, self.viewer, kind, name);
        let Some(sharing) = sharing else {
            return make();
        };
        let made = &self.published.made;
        let key = (kind, name.to_owned(), sharing);
        let known = made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&key) {
            return known.clone();
        }
        drop(known);
        let fresh = make();
        // Names that lead nowhere come from outside: they would fill the table.
        if fresh.is_some() {
            let mut known = made.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(key, fresh.clone());
        }
        fresh
    }

    fn names(&self, kind: ResourceType) -> Vec<String> {
        translate::names(&self.published.world, self.viewer, kind)
    }
}
