//! The pinned tables of an instance, read by those who are not its agent: what the hooks go by now, whether or not an agent lives.

use std::{
    collections::HashMap,
    fs, io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Pod,
    maps::{HashMap as BpfHashMap, Map, MapData, MapError},
};
use sockway_common::{service::Service, watch::Name};

use super::{
    KernelError, abi, flows, outside,
    pins::{Pins, is_bpffs},
    services::map_error,
    sys,
};
use crate::config::Capture;

/// The tables of one instance.
#[derive(Clone, Debug)]
pub struct Pinned {
    maps: PathBuf,
    links: PathBuf,
}

impl Pinned {
    /// The tables that are pinned for `instance`.
    ///
    /// # Errors
    ///
    /// When nothing is pinned, another version pinned it, or this user may not look.
    pub fn find(capture: &Capture, instance: &str) -> Result<Self, KernelError> {
        let pins = Pins::new(&capture.bpffs, instance);
        let settings = pins.maps().join("SETTINGS");
        match fs::metadata(&settings) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                let instance = instance.to_owned();
                return Err(match !is_bpffs(&capture.bpffs) && outside::is_elsewhere() {
                    true => KernelError::Hidden { instance, path: capture.bpffs.clone() },
                    false => KernelError::NotPinned { instance, path: outside::named(&pins.maps()) },
                });
            }
            Err(source) => return Err(KernelError::Pin { path: pins.maps(), source }),
        }
        // With the system's own error: without the right to use bpf(2) this is where it shows.
        sys::pinned(&settings).map_err(|source| KernelError::Pin { path: settings.clone(), source })?;
        abi::check_pinned(&settings)?;
        Ok(Self { maps: pins.maps(), links: pins.links() })
    }

    /// A table, typed.
    pub fn table<M>(&self, name: &'static str) -> Result<M, KernelError>
    where
        M: TryFrom<Map, Error = MapError>,
    {
        let data = MapData::from_pin(self.maps.join(name)).map_err(map_error(name))?;
        Map::from_map_data(data).and_then(M::try_from).map_err(map_error(name))
    }

    /// One entry of a table that is not per CPU; `None` when there is none.
    pub fn entry<K: Pod, V: Pod>(&self, name: &'static str, key: &K) -> Result<Option<V>, KernelError> {
        let map = self.open(name)?;
        sys::lookup(map.as_fd(), key).map_err(|source| KernelError::Pin { path: self.maps.join(name), source })
    }

    /// A table's descriptor.
    pub(super) fn open(&self, name: &'static str) -> Result<OwnedFd, KernelError> {
        let path = self.maps.join(name);
        sys::pinned(&path).map_err(|source| KernelError::Pin { path, source })
    }

    /// Where links are pinned.
    pub fn links(&self) -> &Path {
        &self.links
    }

    /// The service that programs dial at `address` by this IP protocol, as the hooks find it.
    ///
    /// # Errors
    ///
    /// When the table cannot be read.
    pub fn service_at(&self, address: SocketAddr, protocol: u8) -> Result<Option<Service>, KernelError> {
        let key = flows::address(address).of(protocol);
        let found: Option<Service> = self.entry("SERVICES", &key)?;
        Ok(found.filter(|service| service.is_whole(&key)))
    }

    /// The names of all services, by id.
    ///
    /// # Errors
    ///
    /// When the table cannot be read.
    pub fn names(&self) -> Result<HashMap<u32, String>, KernelError> {
        let names: BpfHashMap<MapData, u32, Name> = self.table("NAMES")?;
        Ok(names.iter().flatten().map(|(id, name)| (id, name.as_str().to_owned())).collect())
    }

    /// The name of one service.
    ///
    /// # Errors
    ///
    /// When the table cannot be read.
    pub fn name_of(&self, service: u32) -> Result<Option<String>, KernelError> {
        let name: Option<Name> = self.entry("NAMES", &service)?;
        Ok(name.map(|name| name.as_str().to_owned()))
    }
}
