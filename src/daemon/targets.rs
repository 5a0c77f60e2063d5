//! The iSCSI targets of a gateway: one for each volume, with what names it and where its reservations are kept.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::state::{StateError, StateFolder};
use crate::iscsi::target::Target;
use crate::scsi::{Keep, KeepError, Unit, UnitSettings};
use crate::task;
use crate::volume::Volume;

#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error(
        "load the reservations of volume {volume} from {}; removing the file ends all of them", path.display()
    )]
    Reservations { volume: String, path: PathBuf, source: KeepError },
    #[error(transparent)]
    State(#[from] StateError),
}

/// The target of a volume. What identifies its unit to initiators is drawn once for each volume of a state folder, so
/// that no two gateways' disks are taken for paths to one, whatever they are called.
pub async fn target(state: &StateFolder, iqn: &str, volume: &Volume, id: [u8; 16]) -> Result<Arc<Target>, TargetError> {
    let path = state.reservations(volume.name())?;
    let name = format!("{iqn}:{}", volume.name());
    let settings = UnitSettings {
        name: volume.name().to_owned(),
        serial: id.iter().map(|byte| format!("{byte:02x}")).collect(),
        id,
        target: name.clone(),
        target_ports: 1,
        keep: Some(Arc::new(Kept(path.clone()))),
    };
    let disk = Arc::new(volume.clone());
    let unit = task::blocking(move || Unit::new(disk, settings)).await.expect("a unit begins without panic");
    let unit = unit.map_err(|source| TargetError::Reservations { volume: volume.name().to_owned(), path, source })?;
    Ok(Target::new(name, unit))
}

/// Persistent reservations in a file of the state folder.
struct Kept(PathBuf);

impl Keep for Kept {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        match fs::read(&self.0) {
            Ok(document) => Ok(Some(document)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn store(&self, document: &[u8]) -> io::Result<()> {
        super::state::replace(&self.0, document).map_err(io::Error::other)
    }
}
