//! The target's side of a move: this node accepts or refuses an offered VM by its own load, and
//! reserves capacity until the VM has come.

use super::Manager;
use crate::{
    explain::Decision,
    load::Millis,
    moves::{figures::Figures, score},
    wire::{Message, Offer, OfferRefusal},
};
use p2pvm_overlay::MemberId;

impl Manager {
    /// Answers an offer. An accepted offer that comes again is accepted again.
    pub(super) fn consider(&mut self, now: Millis, from: MemberId, offer: Offer) {
        let (cpu, source) = (f64::from(offer.cpu), f64::from(offer.source_cpu));
        if let Some(promised) = self.arriving.find(from, offer.id) {
            let predicted = promised.predicted as f32;
            return self.send(
                from,
                Message::Accept {
                    id: offer.id,
                    predicted,
                },
            );
        }
        let predicted = score::predict(self.promised_cpu(), self.meter.raw.cpus, cpu);
        match self.refusal(&offer, predicted) {
            Some(why) => self.send(
                from,
                Message::Reject {
                    id: offer.id,
                    why,
                    load: self.load_vector(),
                },
            ),
            None => {
                self.arriving.promise(now, from, &offer, predicted);
                self.send(
                    from,
                    Message::Accept {
                        id: offer.id,
                        predicted: predicted as f32,
                    },
                );
                self.explain_about(
                    now,
                    offer.vm,
                    Decision::TakenIn,
                    Figures::new(source, cpu).against(from, predicted),
                );
            }
        }
    }

    /// Why this node refuses the VM; `None` if it accepts. `predicted` is its load with the VM.
    fn refusal(&self, offer: &Offer, predicted: f64) -> Option<OfferRefusal> {
        let raw = &self.meter.raw;
        let used = raw
            .memory_used_mib
            .saturating_add(self.arriving.memory_mib());
        let is_occupied = self.outgoing.is_some()
            || self.arriving.expected().count() >= self.placement.max_arrivals;
        let fits = score::memory_fits(
            used,
            raw.memory_total_mib,
            offer.memory_mib,
            &self.placement,
        );
        if self.draining || !self.meter.has_measured() {
            Some(OfferRefusal::Unavailable)
        } else if is_occupied {
            Some(OfferRefusal::Occupied)
        } else if predicted > self.placement.low_watermark {
            Some(OfferRefusal::Busy)
        } else if !fits {
            Some(OfferRefusal::Memory)
        } else if f64::from(offer.source_cpu) - predicted < self.placement.min_gain {
            Some(OfferRefusal::LittleGain)
        } else {
            None
        }
    }

    /// The source will not send the VM: frees its capacity.
    pub(super) fn released(&mut self, now: Millis, from: MemberId, id: u64) {
        if let Some(gone) = self.arriving.release(from, id) {
            let figures =
                Figures::new(gone.source_cpu, gone.cpu).against(from, self.promised_cpu());
            self.explain_about(now, gone.vm, Decision::CalledOff, figures);
        }
    }
}
