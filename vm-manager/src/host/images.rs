//! Images that no VM here uses: what came for a VM that did not come or was not made goes at once,
//! what a VM that left or was deleted has left behind after a while, and at the daemon's start
//! whatever nobody uses. Else the disk fills slowly.
//!
//! The disk of every VM here lies over its image, so one that is used must stay; [`Using`] speaks
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

/// How long an image stays that no VM here uses any more. Reason: a VM that left may come back, one
/// that was deleted be made anew.
const KEPT_UNUSED: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked for such images.
const LOOK: Duration = Duration::from_secs(3600);

/// Images in use by VMs that are being made, each by how many.
pub(super) type InUse = Mutex<BTreeMap<ManifestId, usize>>;

/// An image is in use, as long as this lives.
pub(super) struct Using<'a> {
    in_use: &'a InUse,
    image: ManifestId,
}

impl Drop for Using<'_> {
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
    pub(super) fn using(&self, image: ManifestId) -> Using<'_> {
        *lock(&self.in_use).entry(image).or_default() += 1;
        Using {
            in_use: &self.in_use,
            image,
        }
    }

    /// Whether a VM or branch here lies over the image, or will.
    fn uses(&self, image: ManifestId) -> bool {
        lock(&self.in_use).contains_key(&image)
            || self
                .slots()
                .iter()
                .any(|slot| slot.entry().definition.image == image)
    }

    /// Lets go of an image that came for a VM which is not here in the end.
    pub(crate) async fn drop_unused(&self, image: ManifestId) {
        match self
            .parts
            .vault
            .drop_image(image, &|| !self.uses(image))
            .await
        {
            Ok(true) => tracing::info!(%image, "let the image go: no VM here uses it"),
            Ok(false) => {}
            Err(error) => {
                tracing::info!(%image, error = %chain(&error), "an image that no VM here uses \
                    stays")
            }
        }
    }

    /// Lets go of what nobody uses at the start, and from then on of what nobody has used for long.
    pub(super) fn watch_images(&self) {
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

/// Lets images go that are unused for `long`; `unused` is since when each is.
async fn look(host: &Weak<Host>, unused: &mut BTreeMap<ManifestId, Instant>, long: Duration) {
    let Some(host) = host.upgrade() else { return };
    let images = match host.parts.vault.images().await {
        Ok(images) => images,
        Err(error) => {
            return tracing::info!(error = %chain(&error), "it is not known which images are here");
        }
    };
    unused.retain(|image, _| images.contains(image) && !host.uses(*image));
    for image in images.into_iter().filter(|image| !host.uses(*image)) {
        if unused.entry(image).or_insert_with(Instant::now).elapsed() >= long {
            host.drop_unused(image).await;
        }
    }
}
