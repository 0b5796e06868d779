//! The commands that remove old entries of the audit trail, and that record the loss of entries.

use super::Work;
use crate::core::audit::{Action, AuditHead};
use crate::core::command::{CommandOutcome, Denial};
use crate::core::invalid::{Invalid, Problem};
use crate::core::view::Effects;

impl Work<'_> {
    /// Removes the entries up to `through`, and records `through` in an entry that stays: the checkpoint.
    pub(super) fn prune_audit(
        &mut self,
        through: AuditHead,
        epoch: u128,
    ) -> Result<CommandOutcome, Denial> {
        self.permit_application("remove audit entries")?;
        self.check_in_trail(through, epoch)?;
        if through != AuditHead::GENESIS {
            self.log(Action::TrailPruned { through }, None);
            self.change(Effects {
                prune: Some(through.sequence),
                ..Effects::default()
            });
        }
        Ok(CommandOutcome::Done)
    }

    /// Records that the entries after `after`, up to `through`, are lost.
    pub(super) fn record_loss(
        &mut self,
        after: AuditHead,
        through: AuditHead,
        epoch: u128,
    ) -> Result<CommandOutcome, Denial> {
        self.permit_application("record the loss of audit entries")?;
        self.check_in_trail(through, epoch)?;
        self.log(Action::EntriesLost { after, through }, None);
        Ok(CommandOutcome::Done)
    }

    fn check_in_trail(&self, through: AuditHead, epoch: u128) -> Result<(), Denial> {
        let head = self.view.audit_head;
        let beyond = through.sequence > head.sequence;
        let differs = through.sequence == head.sequence && through != head;
        if beyond || differs || epoch != self.view.epoch.0 {
            let expected = "an entry of the tenant's trail";
            return Err(Invalid::new("through", Problem::Format { expected }).into());
        }
        Ok(())
    }
}
