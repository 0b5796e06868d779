//! Checks for commands while clocks disagree, and the repair of a tenant's newest commit time.

use super::Work;
use crate::core::audit::Action;
use crate::core::command::{CommandOutcome, Denial};
use crate::core::owner::{TenantRecord, TimeRepair};
use crate::core::record::KeyRecord;
use crate::core::time::Timestamp;
use crate::core::view::Effects;

impl Work<'_> {
    /// Refuses the command if other clocks contradict this process's clock. Also refuses it if the newest
    /// commit of the command's tenant, or of the actor's own tenant, is dated in the future.
    pub(super) fn check_time(&self) -> Result<(), Denial> {
        let own = self.time.own;
        if let Some(reference) = self.time.reference {
            return Err(Denial::ClockRefused { own, reference });
        }
        let home = self.request.actor.tenant();
        let above = self.ancestry.decided_at.get(home).map(|at| (home, *at));
        let here = self.view.decided_at.map(|at| (&self.request.tenant, at));
        let mut floors = here.into_iter().chain(above);
        match floors.find(|(_, floor)| self.time.is_ahead(*floor)) {
            Some((tenant, floor)) => {
                let tenant = tenant.clone();
                Err(Denial::TenantAhead { tenant, floor, own })
            }
            None => Ok(()),
        }
    }

    /// Returns the instant for checking whether keys are live. While the clocks disagree, this is the
    /// earliest plausible time. A command can then still narrow a key that has expired only according to a
    /// wrong clock.
    pub(super) fn alive_at(&self) -> Timestamp {
        match self.is_doubtful() || self.time.is_ahead(self.now) {
            true => self.time.earliest(),
            false => self.now,
        }
    }

    /// Returns the instant at which the caller's credential must still be valid. Normally this is the current
    /// time, or the newest commit of the actor's own tenant if that is later. While the clocks disagree, this
    /// is the time of the other clocks or the earliest plausible time.
    pub(super) fn caller_alive_at(&self) -> Timestamp {
        let home = self.request.actor.tenant();
        let floor = match *home == self.request.tenant {
            true => self.view.decided_at,
            false => self.ancestry.decided_at.get(home).copied(),
        };
        let now = floor.map_or(self.time.own, |floor| floor.max(self.time.own));
        match self.time.reference {
            Some(reference) => reference,
            None if self.is_doubtful() || self.time.is_ahead(now) => self.time.earliest(),
            None => now,
        }
    }

    /// Returns a predicate for keys that were created after `began`. A creation time in the future does not
    /// count, because a wrong clock must have set it and the key may be older.
    pub(super) fn came_later(&self, began: Timestamp) -> impl Fn(&KeyRecord) -> bool + use<> {
        // The clock that dated the key and this process's clock may each be wrong by the allowance.
        let possible = self.time.best().saturating_add(self.time.allowance * 2);
        move |record| record.created.at > began && record.created.at <= possible
    }

    fn is_doubtful(&self) -> bool {
        self.time.reference.is_some() || self.time.held < self.time.own
    }

    pub(super) fn repair_time(&mut self) -> Result<CommandOutcome, Denial> {
        self.permit_application("repair the time of a tenant")?;
        let to = self.now;
        let Some(newest) = self.view.decided_at else {
            return Err(Denial::TenantNotFound);
        };
        let Some(from) = Some(newest).filter(|from| *from > to) else {
            return Ok(CommandOutcome::Done);
        };
        let through = self.view.revision;
        let mut row = self.tenant_row();
        // A bulk command that a wrong clock dated in the future now starts at the repaired time, so it does
        // not affect newer keys.
        (row.sweeps.iter_mut()).for_each(|own| own.began_at = own.began_at.min(to));
        self.change(Effects {
            tenant: Some(TenantRecord {
                time_repair: Some(TimeRepair { to, through }),
                ..row
            }),
            ..Effects::default()
        });
        self.log(Action::TimeRepaired { from, to }, None);
        Ok(CommandOutcome::TimeRepaired { from, to })
    }

    /// Stores the instant of the decision in the tenant's row, unless the commit writes another row that
    /// holds it. Readers derive the tenant's newest commit time from its rows. A removed key leaves only a
    /// tombstone, which cannot hold the instant.
    pub(super) fn record_instant(&mut self) {
        let Effects {
            puts,
            removes: _,
            owners,
            tenant,
            digests: _,
            audit,
            prune: _,
        } = &self.effects;
        let left = !puts.is_empty() || !owners.is_empty() || tenant.is_some();
        if !left && !audit.is_empty() {
            let tenant = Some(self.tenant_row());
            self.change(Effects {
                tenant,
                ..Effects::default()
            });
        }
    }

    /// Returns the tenant's row, or a new row for a tenant without one.
    fn tenant_row(&self) -> TenantRecord {
        let known = self.view.tenant.clone();
        known.unwrap_or_else(|| TenantRecord::new(self.request.tenant.clone(), self.stamp()))
    }
}
