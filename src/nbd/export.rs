//! The exports of a server: disks under names. They may come and go while it runs; a connection keeps the one that
//! it opened.

use std::sync::{Arc, PoisonError, RwLock};

use crate::disk::Disk;

/// A disk under a name.
pub struct Export {
    /// At most [`STRING_MAX`](super::wire::STRING_MAX) bytes, else no client can ask for it.
    pub name: String,
    /// For people; empty if there is nothing to say.
    pub description: String,
    pub disk: Arc<dyn Disk>,
}

#[derive(Debug, thiserror::Error)]
#[error("there is an export named {0:?} already")]
pub struct NameTaken(pub String);

/// The exports there are at the moment; clones share them.
#[derive(Clone, Default)]
pub struct Exports(Arc<RwLock<Vec<Arc<Export>>>>);

impl Exports {
    pub fn new(exports: Vec<Export>) -> Result<Self, NameTaken> {
        let all = Self::default();
        exports.into_iter().try_for_each(|export| all.add(export))?;
        Ok(all)
    }

    pub fn add(&self, export: Export) -> Result<(), NameTaken> {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if all.iter().any(|other| other.name == export.name) {
            return Err(NameTaken(export.name));
        }
        all.push(Arc::new(export));
        Ok(())
    }

    /// No new connection finds the export from now on; those that have it keep it.
    pub fn remove(&self, name: &str) -> Option<Arc<Export>> {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let at = all.iter().position(|export| export.name == name)?;
        Some(all.remove(at))
    }

    /// The export of this name; the empty name also means the only one that there is.
    pub(super) fn find(&self, name: &[u8]) -> Option<Arc<Export>> {
        let all = self.list();
        match (all.iter().find(|export| export.name.as_bytes() == name), &all[..]) {
            (Some(export), _) => Some(export.clone()),
            (None, [only]) if name.is_empty() => Some(only.clone()),
            _ => None,
        }
    }

    pub(super) fn list(&self) -> Vec<Arc<Export>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
