//! Time: what is refused while it is in doubt, and its repair.

use super::Work;
use crate::core::audit::Action;
use crate::core::command::{Denied, Outcome};
use crate::core::owner::{TenantRecord, TimeRepair};
use crate::core::time::Timestamp;
use crate::core::view::Effects;

impl Work<'_> {
    /// Refuses what issues or prolongs while the time is in doubt.
    pub(super) fn check_time(&self) -> Result<(), Denied> {
        let own = self.time.own;
        if let Some(reference) = self.time.reference {
            return Err(Denied::ClockRefused { own, reference });
        }
        let ahead = |floor: &_| self.time.is_ahead(*floor);
        match self.view.decided_at.filter(ahead) {
            Some(floor) => Err(Denied::TenantAhead { floor, own }),
            None => Ok(()),
        }
    }

    /// The instant at which keys and callers are alive or not. While the time is in doubt it is the earlier
    /// of what is known: what only a wrong clock says has ended can still be narrowed, and does.
    pub(super) fn alive_at(&self) -> Timestamp {
        if self.time.reference.is_some() || self.time.is_ahead(self.now) {
            return self.time.earliest();
        }
        self.now
    }

    pub(super) fn repair_time(&mut self) -> Result<Outcome, Denied> {
        self.permit_application("repair the time of a tenant")?;
        let to = self.now;
        let row = self.view.tenant.clone().ok_or(Denied::TenantNotFound)?;
        let Some(from) = self.view.decided_at.filter(|from| *from > to) else {
            return Ok(Outcome::Done);
        };
        let through = self.view.revision;
        self.change(Effects {
            tenant: Some(TenantRecord {
                time_repair: Some(TimeRepair { to, through }),
                ..row
            }),
            ..Effects::default()
        });
        self.log(Action::TimeRepaired { from, to }, None);
        Ok(Outcome::TimeRepaired { from, to })
    }

    /// Leaves the instant of the decision in a row that stays, so that every reader of the rows knows the
    /// tenant's newest one: a tombstone holds none, and is forgotten one day.
    pub(super) fn leave_instant(&mut self) {
        let Effects {
            puts,
            removes: _,
            owners,
            tenant,
            digests: _,
            audit,
        } = &self.effects;
        let left = !puts.is_empty() || !owners.is_empty() || tenant.is_some();
        if let (false, false, Some(row)) = (left, audit.is_empty(), &self.view.tenant) {
            let tenant = Some(row.clone());
            self.change(Effects {
                tenant,
                ..Effects::default()
            });
        }
    }
}
