//! Images that no VM here uses are removed, or the disk would slowly fill: at once where the VM did
//! not arrive or was not made, after a day where it left or was deleted, and at the daemon's start
//! whenever no VM uses it.
//!
//! The disk of every VM here lies over its image, so a used image must stay; an [`ImageUse`] stands
//! for a VM that is not listed yet.

use super::{Host, lock};
use p2pvm_overlay::chain;
use p2pvm_snapshot_sync::ManifestId;
use std::{
    collections::BTreeMap,
    sync::{Mutex, Weak},
    time::Duration,
};
use tokio::time::Instant;

/// How long before an image that no VM here uses any more is removed. Reason: a VM that left may
/// come back, and a deleted one may be made again.
const KEPT_UNUSED: Duration = Duration::from_secs(24 * 3600);
/// How long between two searches for such images.
const LOOK: Duration = Duration::from_secs(3600);

/// How many VMs that are being made use each image.
pub(super) type ImageUses = Mutex<BTreeMap<ManifestId, usize>>;

/// The use of an image by a VM that is being made.
pub(super) struct ImageUse<'a> {
    in_use: &'a ImageUses,
    image: ManifestId,
}

impl Drop for ImageUse<'_> {
    fn drop(&mut self) {
        let mut in_use = lock(self.in_use);
        if let Some(users) = in_use.get_mut(&self.image) {
            *users -= 1;
            if *users == 0 {
                in_use.remove(&self.image);
            }
        }
    }
}

impl Host {
    /// Notes that a VM is being made of the image.
    pub(super) fn using(&self, image: ManifestId) -> ImageUse<'_> {
        *lock(&self.in_use).entry(image).or_default() += 1;
        ImageUse {
            in_use: &self.in_use,
            image,
        }
    }

    /// Whether the disk of a VM or branch here lies over the image, or will.
    fn uses(&self, image: ManifestId) -> bool {
        lock(&self.in_use).contains_key(&image)
            || self
                .slots()
                .iter()
                .any(|slot| slot.entry().definition.image == image)
    }

    /// Removes an image, unless a VM here uses it.
    pub(crate) async fn drop_unused(&self, image: ManifestId) {
        match self
            .parts
            .vault
            .drop_image(image, &|| !self.uses(image))
            .await
        {
            Ok(true) => tracing::info!(%image, "removed the image: no VM here uses it"),
            Ok(false) => {}
            Err(error) => {
                tracing::info!(%image, error = %chain(&error), "an image that no VM here uses \
                    stays")
            }
        }
    }

    /// Removes unused images now, and from then on those that have been unused for long.
    pub(crate) fn watch_images(&self) {
        let this = self.this.clone();
        self.spawn(async move {
            let mut unused = BTreeMap::new();
            look(&this, &mut unused, Duration::ZERO).await;
            loop {
                tokio::time::sleep(LOOK).await;
                look(&this, &mut unused, KEPT_UNUSED).await;
            }
        });
    }
}

/// Removes images that have been unused for `long`; `unused` says since when each has been.
async fn look(host: &Weak<Host>, unused: &mut BTreeMap<ManifestId, Instant>, long: Duration) {
    let Some(host) = host.upgrade() else { return };
    let images = match host.parts.vault.images().await {
        Ok(images) => images,
        Err(error) => {
            return tracing::info!(error = %chain(&error), "the images here cannot be listed");
        }
    };
    unused.retain(|image, _| images.contains(image) && !host.uses(*image));
    for image in images.into_iter().filter(|image| !host.uses(*image)) {
        if unused.entry(image).or_insert_with(Instant::now).elapsed() >= long {
            host.drop_unused(image).await;
        }
    }
}
