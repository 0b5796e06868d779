//! What a key is needed for.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::invalid::Invalid;
use super::scope::{Scope, ScopeSet};
use super::tenant::TenantId;
use super::text::{ClassName, Environment};

/// What a key is needed for: every condition that is named must hold.
///
/// # Examples
///
/// ```
/// use keyward::{Environment, Need};
///
/// let need = Need::scope("reports:read").in_environment(Environment::LIVE);
/// ```
///
/// Made once and used for many verifications it is cheapest: it remembers of which keys' kinds it is
/// known to be met.
#[derive(Clone, Default)]
#[must_use = "a need checks nothing by itself"]
pub struct Need {
    conditions: Conditions,
    /// Holds for these conditions: whoever changes them begins anew.
    met: Met,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Conditions {
    pub(super) scopes: ScopeSet,
    pub(super) any_of: ScopeSet,
    pub(super) classes: Vec<ClassName>,
    pub(super) beside: Vec<ClassName>,
    pub(super) environment: Option<Environment>,
    pub(super) tenant: Option<TenantId>,
    pub(super) address: Option<IpAddr>,
    pub(super) publishable: bool,
    pub(super) invalid: Option<Invalid>,
}

/// How many kinds of keys a need remembers, as a power of two. A judgement: 2 KiB, and as many
/// combinations of scopes, class and role as most services give out.
const REMEMBERED_BITS: u32 = 8;
const REMEMBERED: usize = 1 << REMEMBERED_BITS;

/// A memory of what met a need: whatever it has is so, and it may have forgotten anything.
#[derive(Default)]
pub(crate) struct Met {
    /// The first, so that a need which is used once costs no more.
    first: AtomicU64,
    /// Made when there is a second.
    more: OnceLock<Box<[AtomicU64; REMEMBERED]>>,
}

impl Met {
    #[inline]
    pub(crate) fn has(&self, kind: NonZeroU64) -> bool {
        let is = |place: &AtomicU64| place.load(Ordering::Relaxed) == kind.get();
        is(&self.first) || self.more.get().is_some_and(|more| is(place(more, kind)))
    }

    pub(crate) fn note(&self, kind: NonZeroU64) {
        let order = Ordering::Relaxed;
        if self
            .first
            .compare_exchange(0, kind.get(), order, order)
            .is_err()
        {
            let more = self
                .more
                .get_or_init(|| Box::new([const { AtomicU64::new(0) }; REMEMBERED]));
            place(more, kind).store(kind.get(), order);
        }
    }
}

#[inline]
fn place(more: &[AtomicU64; REMEMBERED], kind: NonZeroU64) -> &AtomicU64 {
    // Neighbours go to different places (Knuth, volume 3, section 6.4).
    let mixed = kind.get().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    &more[(mixed >> (u64::BITS - REMEMBERED_BITS)) as usize]
}

/// Knows what the other knew of the first kind: most copies are changed and used once.
impl Clone for Met {
    fn clone(&self) -> Self {
        Self {
            first: AtomicU64::new(self.first.load(Ordering::Relaxed)),
            more: OnceLock::new(),
        }
    }
}

impl fmt::Debug for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Need").field(&self.conditions).finish()
    }
}

impl Need {
    /// Nothing but a secret key that verifies. Says nothing of what the key may do: ask
    /// [`Grant::allows`](crate::Grant::allows) before acting.
    pub fn any() -> Self {
        Self::default()
    }

    /// This scope. A malformed scope is kept as it is and makes every verification fail.
    pub fn scope<S>(scope: S) -> Self
    where
        S: TryInto<Scope>,
        S::Error: Into<Invalid>,
    {
        Self::any().and_scope(scope)
    }

    /// This scope too.
    pub fn and_scope<S>(mut self, scope: S) -> Self
    where
        S: TryInto<Scope>,
        S::Error: Into<Invalid>,
    {
        let conditions = self.change();
        match scope.try_into() {
            Ok(scope) => {
                let all = conditions.scopes.iter().cloned().chain([scope]);
                match ScopeSet::new(all) {
                    Ok(all) => conditions.scopes = all,
                    Err(invalid) => conditions.invalid = Some(invalid),
                }
            }
            Err(invalid) => conditions.invalid = Some(invalid.into()),
        }
        self
    }

    /// At least one of these scopes. An empty set can never be met.
    pub fn any_scope_of(mut self, scopes: ScopeSet) -> Self {
        let conditions = self.change();
        if scopes.is_empty() {
            let expected = "at least one scope";
            let problem = super::invalid::Problem::Form { expected };
            conditions.invalid = Some(Invalid::new("needed scopes", problem));
        }
        conditions.any_of = scopes;
        self
    }

    /// A key of this class, or of any other that is named (rule A2-31).
    pub fn of_class(mut self, class: ClassName) -> Self {
        self.change().classes.push(class);
        self
    }

    /// In a pair, a publishable key of this class beside the secret one, or of any other that is
    /// named. Without any, every publishable key of the same tenant and environment will do.
    pub fn beside_class(mut self, class: ClassName) -> Self {
        self.change().beside.push(class);
        self
    }

    /// A key for this environment (rule G-36).
    pub fn in_environment(mut self, environment: Environment) -> Self {
        self.change().environment = Some(environment);
        self
    }

    /// A key that reaches this tenant: its own, or one below it if its class reaches that far.
    pub fn for_tenant(mut self, tenant: TenantId) -> Self {
        // Looked at for every key: what is known of their kinds stays so.
        self.conditions.tenant = Some(tenant);
        self
    }

    /// A request from this address, as the host knows it from the socket or a trusted proxy.
    pub fn from_address(mut self, address: IpAddr) -> Self {
        // As with the tenant.
        self.conditions.address = Some(address);
        self
    }

    /// Lets publishable keys pass as well, which anybody may hold.
    pub fn or_publishable(mut self) -> Self {
        self.change().publishable = true;
        self
    }

    /// What the publishable half of a pair must meet, where the secret half must meet this.
    pub(crate) fn of_publishable_half(&self) -> Self {
        let conditions = Conditions {
            classes: self.conditions.beside.clone(),
            address: self.conditions.address,
            publishable: true,
            ..Conditions::default()
        };
        Self {
            conditions,
            met: Met::default(),
        }
    }

    /// The conditions, to be changed: what is known of those before is forgotten.
    fn change(&mut self) -> &mut Conditions {
        self.met = Met::default();
        &mut self.conditions
    }

    /// The tenant that the key must reach.
    pub(crate) const fn tenant(&self) -> Option<&TenantId> {
        self.conditions.tenant.as_ref()
    }

    /// The address that the request came from, if it is known.
    pub(crate) const fn address(&self) -> Option<IpAddr> {
        self.conditions.address
    }

    pub(super) const fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// Of which keys' kinds it is known that they meet all conditions but those on the tenant and
    /// the address.
    pub(crate) const fn met(&self) -> &Met {
        &self.met
    }

    /// What is wrong with the need itself, if anything.
    #[must_use]
    pub const fn invalid(&self) -> Option<&Invalid> {
        self.conditions.invalid.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(number: u64) -> NonZeroU64 {
        NonZeroU64::new(number).unwrap()
    }

    #[test]
    fn what_a_need_remembers_ends_where_it_is_changed() {
        type Change = fn(Need) -> Need;
        let changes: [Change; 6] = [
            |need| need.and_scope("reports:read"),
            |need| need.any_scope_of(ScopeSet::all()),
            |need| need.of_class("secret".parse().unwrap()),
            |need| need.beside_class("public".parse().unwrap()),
            |need| need.in_environment(Environment::LIVE),
            Need::or_publishable,
        ];
        for change in changes {
            let need = Need::any();
            need.met().note(kind(7));
            assert!(need.met().has(kind(7)) && need.clone().met().has(kind(7)));
            assert!(!change(need).met().has(kind(7)));
        }
        let need = Need::any();
        need.met().note(kind(7));
        assert!(!need.of_publishable_half().met().has(kind(7)));
    }

    #[test]
    fn what_a_need_remembers_does_not_depend_on_the_request() {
        let need = Need::any();
        need.met().note(kind(7));
        let of_request = need.clone().for_tenant("acme".parse().unwrap());
        let of_request = of_request.from_address([192, 0, 2, 1].into());
        assert!(of_request.met().has(kind(7)));
    }

    #[test]
    fn a_memory_has_nothing_that_was_not_noted() {
        let met = Met::default();
        (1..1000).for_each(|number| met.note(kind(number)));
        assert!(!(1000..100_000).any(|number| met.has(kind(number))));
        assert!((1..1000).any(|number| met.has(kind(number))));
    }
}
