//! Base images: chunks, and one read-only file each that the hypervisor opens. The file is made
//! from the chunks when it is first needed, and may be deleted at any time.

use crate::{
    ChunkStore, Error, Exchange, Kind, Manifest, ManifestId, Progress,
    error::{blocking, io_at},
    file,
    file::ImportOptions,
};
use p2pvm_overlay::MemberId;
use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;

/// An image's name: that of its manifest.
pub type ImageId = ManifestId;

/// The label of the pins that keep images here.
pub const PIN: &str = "image";

/// The images of this member, as files in a directory.
pub struct Images {
    exchange: Arc<Exchange>,
    dir: PathBuf,
    /// At most one task makes an image's file at a time.
    making: Mutex<HashMap<ImageId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Images {
    /// Opens the directory of image files, made if missing. Files that a killed process left
    /// half-written are removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(exchange: Arc<Exchange>, dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(io_at("creating a directory", &dir))?;
        // The daemon opens images for its guests; no other user of the machine may read them.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
            .map_err(io_at("protecting", &dir))?;
        for entry in fs::read_dir(&dir).map_err(io_at("listing", &dir))? {
            let entry = entry.map_err(io_at("listing", &dir))?;
            if entry.file_name().to_string_lossy().ends_with(".partial") {
                fs::remove_file(entry.path()).map_err(io_at("removing", entry.path()))?;
            }
        }
        Ok(Self {
            exchange,
            dir,
            making: Mutex::default(),
        })
    }

    /// Imports a qcow2 or raw file. The same content has the same id on every member.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn import(
        &self,
        path: &Path,
        progress: &watch::Sender<Progress>,
    ) -> Result<ImageId, Error> {
        let imported = file::import_file(
            self.store(),
            path,
            ImportOptions::new(Kind::Image),
            progress,
        )
        .await?;
        pin(self.store(), imported.id).await?;
        Ok(imported.id)
    }

    /// The image as a read-only file here, made from chunks that are here or fetched from
    /// `providers`. Dropping the future ends the fetch. Once all chunks are here, the image is
    /// pinned and its file made even if the future is dropped; [`Images::remove`] waits for that.
    ///
    /// # Errors
    /// `NoProvider` if some chunk is missing from every provider; [`Error::Io`].
    pub async fn ensure_local(
        &self,
        image: ImageId,
        providers: &[MemberId],
        progress: &watch::Sender<Progress>,
    ) -> Result<PathBuf, Error> {
        let making = self.making(image).lock_owned().await;
        let path = self.path(image);
        if path.exists() && self.is_pinned(image).await? {
            return Ok(path);
        }
        // For an image that is here, this reads its chunks and asks no provider.
        let report = self.exchange.fetch(image, providers, progress).await?;
        let (exchange, providers, progress) =
            (self.exchange.clone(), providers.to_vec(), progress.clone());
        // A separate task: a pin set by a dropped future would otherwise follow a removal.
        let keeping = tokio::spawn(async move {
            let kept = keep(&exchange, image, &providers, &path, &progress).await;
            drop((report, making));
            kept.map(|()| path)
        });
        keeping.await.map_err(|_| Error::Closed {
            step: "keeping an image",
        })?
    }

    /// The images here.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn list(&self) -> Result<Vec<ImageId>, Error> {
        let store = self.store().clone();
        let pins = blocking("listing images", move || store.pins()).await?;
        Ok(pins
            .into_iter()
            .filter(|pin| pin.owner.is_none() && pin.label == PIN)
            .map(|pin| pin.manifest)
            .collect())
    }

    /// Removes an image: its file now, its chunks at the next collection. No VM here may use it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn remove(&self, image: ImageId) -> Result<(), Error> {
        self.remove_if(image, || true).await.map(drop)
    }

    /// Removes an image if `unused` returns true. It is called while no task makes the image's
    /// file. Returns whether the image was removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn remove_if(
        &self,
        image: ImageId,
        unused: impl Fn() -> bool,
    ) -> Result<bool, Error> {
        let _making = self.making(image).lock_owned().await;
        if !unused() {
            return Ok(false);
        }
        let (store, path) = (self.store().clone(), self.path(image));
        blocking("removing an image", move || {
            store.unpin(image, PIN)?;
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_at("removing", &path)(e)),
                _ => Ok(true),
            }
        })
        .await
    }

    /// Where [`Images::ensure_local`] puts the image.
    pub fn path(&self, image: ImageId) -> PathBuf {
        self.dir.join(format!("{image}.img"))
    }

    fn store(&self) -> &ChunkStore {
        self.exchange.store()
    }

    fn making(&self, image: ImageId) -> Arc<tokio::sync::Mutex<()>> {
        self.making
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(image)
            .or_default()
            .clone()
    }

    async fn is_pinned(&self, image: ImageId) -> Result<bool, Error> {
        Ok(self.list().await?.contains(&image))
    }
}

async fn pin(store: &ChunkStore, image: ImageId) -> Result<(), Error> {
    let store = store.clone();
    blocking("pinning an image", move || store.pin(image, PIN)).await
}

/// Pins an image whose chunks are here, and makes its file.
async fn keep(
    exchange: &Exchange,
    image: ImageId,
    providers: &[MemberId],
    path: &Path,
    progress: &watch::Sender<Progress>,
) -> Result<(), Error> {
    let store = exchange.store();
    pin(store, image).await?;
    if path.exists() {
        return Ok(());
    }
    let reading = store.clone();
    let manifest = blocking("reading a manifest", move || {
        Manifest::load(&reading, image)
    })
    .await?;
    match file::export_read_only(store, &manifest, path, progress).await {
        Err(Error::NotFound(_) | Error::Corrupt { .. }) => {
            exchange.mend(image, providers, progress).await?;
            file::export_read_only(store, &manifest, path, progress).await
        }
        done => done,
    }
}

#[cfg(test)]
mod tests;
