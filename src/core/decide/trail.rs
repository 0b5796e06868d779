//! The command that removes old entries of the audit trail.

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
        let head = self.view.audit_head;
        let beyond = through.sequence > head.sequence;
        let differs = through.sequence == head.sequence && through != head;
        if beyond || differs || epoch != self.view.epoch.0 {
            let expected = "an entry of the tenant's trail";
            return Err(Invalid::new("through", Problem::Format { expected }).into());
        }
        if through != AuditHead::GENESIS {
            self.log(Action::TrailPruned { through }, None);
            self.change(Effects {
                prune: Some(through.sequence),
                ..Effects::default()
            });
        }
        Ok(CommandOutcome::Done)
    }
}
