//! The contracts of [`KeyStore`], [`NodeRegistry`], [`Documents`] and [`UsageStore`], one check per clause.
//!
//! Every check creates a store, calls its trait methods, and compares the results with the contract. A check
//! does not panic: it returns a [`ClauseViolation`] if the store breaks a clause.

#![expect(
    clippy::missing_errors_doc,
    reason = "every check has the same error, documented at `clauses`"
)]

mod commit;
mod documents;
mod feed;
mod find;
mod fixtures;
mod guards;
mod list;
mod load;
mod nodes;
mod rows;
mod scan;
mod trail;
mod usage;
mod wait;

use keyward::store::usage::UsageStore;
use keyward::store::{Documents, KeyStore, NodeRegistry};

/// The checks as functions, each named after its clause. A check returns `Ok` if the store keeps the clause,
/// and otherwise the [`ClauseViolation`].
///
/// `make` creates a store, and must return a fresh, empty one on each call. Some checks create several
/// stores. A store must not compact its history during a check.
pub mod clauses {
    pub use super::commit::*;
    pub use super::documents::*;
    pub use super::feed::*;
    pub use super::find::*;
    pub use super::guards::*;
    pub use super::list::*;
    pub use super::load::*;
    pub use super::nodes::*;
    pub use super::rows::*;
    pub use super::scan::*;
    pub use super::trail::*;
    pub use super::usage::*;
    pub use super::wait::*;
}

/// A clause that a store breaks, with the evidence.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{clause}: {detail}")]
pub struct ClauseViolation {
    /// The name of the clause, which is also the name of its check in [`clauses`].
    pub clause: &'static str,
    /// A description of the result that the contract requires, and of the result that the store returned.
    pub detail: String,
}

/// Calls a macro with the name of every clause of the [`KeyStore`] contract.
///
/// The called macro first gets the tokens that the caller gave in braces, as one group. The clause names
/// follow, each with a comma. [`suite!`](crate::suite) and other test harnesses can be built on it.
#[macro_export]
macro_rules! for_each_clause {
    ($then:path { $($with:tt)* }) => {
        $then! {
            { $($with)* }
            an_unknown_tenant_is_empty_at_revision_zero,
            load_returns_the_epoch,
            load_reflects_every_commit_that_returned,
            load_returns_keys_by_id,
            load_returns_keys_live_at_an_instant,
            load_returns_the_legacy_key,
            load_returns_rows_of_owners,
            load_returns_rows_of_the_owners_of_loaded_keys,
            load_returns_what_commands_did,
            load_stays_within_the_tenant,
            load_always_returns_the_tenants_row,
            the_audit_head_is_that_of_the_newest_entry,
            decided_at_goes_back_in_a_repair,
            decided_at_never_goes_back,
            load_returns_the_revision_of_each_row,
            find_returns_a_key_by_its_id,
            find_returns_a_key_by_its_imported_digest,
            find_reflects_every_commit_that_returned,
            find_returns_the_tombstone_of_a_removed_key,
            find_returns_a_head_that_can_be_followed,
            a_commit_on_another_revision_is_a_conflict,
            a_commit_on_another_history_is_a_conflict,
            a_conflict_writes_nothing,
            a_refused_batch_writes_nothing,
            ids_are_unique_across_tenants,
            a_removed_key_never_comes_back,
            removing_a_key_never_stored_takes_its_id,
            imported_digests_are_unique_across_tenants,
            imported_digests_are_unique_within_a_batch,
            the_digest_of_a_removed_key_stays_taken,
            a_claimed_digest_stays_taken,
            concurrent_claims_of_one_digest_have_one_winner,
            a_commit_whose_guards_hold_is_applied,
            a_commit_whose_guarded_row_moved_is_a_conflict,
            a_commit_whose_guarded_row_appeared_is_a_conflict,
            a_commit_whose_guarded_key_was_removed_is_a_conflict,
            a_guard_holds_while_its_tenant_changes,
            a_guard_holds_until_its_commit_is_applied,
            revisions_increase_in_commit_order,
            nothing_appears_behind_a_revision_seen,
            concurrent_commits_have_one_winner,
            a_dropped_commit_is_all_or_nothing,
            records_come_back_as_they_were_written,
            other_rows_come_back_as_they_were_written,
            a_put_replaces_the_whole_record,
            changes_come_oldest_first,
            changes_end_at_the_rows_of_the_store,
            a_revision_is_never_split_across_pages,
            nothing_up_to_upto_is_missing,
            an_empty_page_means_caught_up,
            tombstones_are_in_the_feed,
            a_cursor_ahead_of_the_head_has_diverged,
            a_cursor_of_another_epoch_is_compacted,
            a_cursor_with_another_tag_has_diverged,
            cursors_carry_the_tag_of_their_commit,
            changes_now_returns_what_changes_returns,
            a_scan_returns_every_row_in_order,
            a_scan_and_its_changes_lead_to_the_store,
            a_scan_reads_its_head_before_its_rows,
            a_scan_of_all_returns_every_row_once,
            a_scan_of_all_reads_its_head_before_its_rows,
            a_scan_of_all_returns_the_consumers_error,
            a_list_holds_exactly_what_matches,
            a_list_comes_in_the_querys_order,
            pages_of_a_list_neither_repeat_nor_skip,
            a_list_goes_on_after_a_key_that_is_gone,
            a_list_reflects_every_commit_that_returned,
            tenants_have_committed,
            a_new_store_is_not_restored,
            the_audit_trail_comes_oldest_first,
            the_audit_trail_holds_exactly_what_matches,
            pages_of_the_audit_trail_neither_repeat_nor_skip,
            a_commit_prunes_the_oldest_entries_of_its_own_trail,
            the_audit_trail_reflects_every_commit_that_returned,
            waiting_does_not_fail,
            waiting_holds_up_no_commit,
        }
    };
}

/// Calls a macro with the name of every clause of the [`NodeRegistry`] contract. Works like
/// [`for_each_clause!`](crate::for_each_clause).
#[macro_export]
macro_rules! for_each_registry_clause {
    ($then:path { $($with:tt)* }) => {
        $then! {
            { $($with)* }
            a_report_is_in_every_later_read,
            reports_come_back_as_they_were_written,
            a_later_report_replaces_an_earlier_one,
            an_older_report_changes_nothing,
            a_registry_returns_whether_it_accepted_a_report,
            nodes_are_identified_by_their_ids,
            no_node_vanishes_by_itself,
            forgetting_takes_one_node_away,
            forgetting_spares_a_node_that_reported_since,
            a_forgotten_node_may_report_again,
            a_dropped_report_is_all_or_nothing,
            concurrent_reports_end_at_the_latest,
        }
    };
}

/// Calls a macro with the name of every clause of the [`Documents`] contract. Works like
/// [`for_each_clause!`](crate::for_each_clause).
#[macro_export]
macro_rules! for_each_documents_clause {
    ($then:path { $($with:tt)* }) => {
        $then! {
            { $($with)* }
            a_document_is_in_every_later_read,
            documents_come_back_as_they_were_written,
            a_document_has_a_largest_size,
            a_write_on_another_version_is_a_conflict,
            documents_are_identified_by_their_names,
            a_write_whose_guarded_document_moved_is_a_conflict,
            a_document_write_for_another_epoch_is_a_conflict,
            a_dropped_document_write_is_all_or_nothing,
            concurrent_document_writes_have_one_winner,
        }
    };
}

/// Calls a macro with the name of every clause of the [`UsageStore`] contract. Works like
/// [`for_each_clause!`](crate::for_each_clause).
#[macro_export]
macro_rules! for_each_usage_clause {
    ($then:path { $($with:tt)* }) => {
        $then! {
            { $($with)* }
            a_batch_is_in_every_later_read,
            counts_of_batches_add_up,
            sums_stop_at_the_largest_count,
            a_repeated_batch_is_added_once,
            a_batch_out_of_order_is_refused,
            a_batch_of_an_unknown_boot_is_refused,
            a_batch_of_a_closed_boot_is_refused,
            opening_a_boot_twice_changes_nothing,
            a_replaced_boot_leaves_a_gap,
            a_new_history_closes_every_boot,
            an_unclean_close_leaves_a_gap,
            closing_at_another_number_changes_nothing,
            the_ledger_follows_the_rules,
            a_batch_moves_its_boot_forward,
            the_last_use_never_moves_back,
            refusals_are_no_last_use,
            keys_come_in_the_order_of_their_last_use,
            pages_of_last_uses_neither_repeat_nor_skip,
            last_uses_stay_within_the_tenant,
            last_uses_stay_within_their_days,
            days_come_in_the_order_of_keys,
            days_stay_within_their_range,
            pruning_removes_old_days,
            pruning_raises_counted_since,
            pruning_removes_closed_boots_and_ended_gaps,
            forgetting_removes_all_about_a_key,
            a_forgotten_key_is_counted_again,
            outcomes_of_later_versions_come_back,
            ids_and_tenants_come_back_unchanged,
            a_large_batch_is_added_completely,
            a_dropped_batch_is_all_or_nothing,
            a_dropped_opening_is_all_or_nothing,
            concurrent_batches_add_up,
            concurrent_copies_of_a_batch_are_added_once,
            a_batch_and_the_end_of_its_boot_exclude_each_other,
            concurrent_openings_both_take_effect,
        }
    };
}

macro_rules! table {
    ({ $contract:ident $all:ident $check:ident } $($name:ident,)*) => {
        #[doc = concat!("The names of all clauses of [`", stringify!($contract), "`]; each is documented at its check in [`clauses`].")]
        pub const $all: &[&str] = &[$(stringify!($name)),*];

        #[doc = concat!("Runs one check of [`", stringify!($contract), "`] by its clause's name; `None` if no clause has that name.")]
        pub async fn $check<S: $contract>(
            clause: &str,
            make: &impl Fn() -> S,
        ) -> Option<Result<(), ClauseViolation>> {
            $(if clause == stringify!($name) {
                return Some(Box::pin(clauses::$name(make)).await);
            })*
            None
        }
    };
}

crate::for_each_clause!(table { KeyStore CLAUSES check });
crate::for_each_registry_clause!(table { NodeRegistry REGISTRY_CLAUSES check_registry });
crate::for_each_documents_clause!(table { Documents DOCUMENTS_CLAUSES check_documents });
crate::for_each_usage_clause!(table { UsageStore USAGE_CLAUSES check_usage });

/// Runs every check, and returns one violation for each broken clause. Use [`suite!`](crate::suite) instead
/// to get one test per clause.
pub async fn violations<S: KeyStore>(make: &impl Fn() -> S) -> Vec<ClauseViolation> {
    let mut found = Vec::new();
    for clause in CLAUSES {
        if let Some(Err(violation)) = check(clause, make).await {
            found.push(violation);
        }
    }
    found
}

/// Expands to a module of tests: one test per clause of the [`KeyStore`] contract, named after the clause.
///
/// `store` is an expression that returns an empty store. A test evaluates it once per store that the test
/// needs. The tests run on [`block_on`](crate::block_on), a plain executor. The `block_on` argument names
/// another executor, such as one that enters the runtime of an asynchronous driver.
///
/// # Examples
///
/// ```no_run
/// keyward_conformance::suite! { mod memory; store = keyward::store::MemoryStore::new(); }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! suite {
    ($(#[$meta:meta])* mod $module:ident; store = $store:expr;) => {
        $crate::suite! { $(#[$meta])* mod $module; block_on = $crate::block_on; store = $store; }
    };
    ($(#[$meta:meta])* mod $module:ident; block_on = $block_on:expr; store = $store:expr;) => {
        $(#[$meta])*
        mod $module {
            #[allow(unused_imports)]
            use super::*;

            $crate::for_each_clause!($crate::suite { @tests block_on = $block_on; store = $store; });
        }
    };
    ({ @tests block_on = $block_on:expr; store = $store:expr; } $($name:ident,)*) => {$(
        #[test]
        fn $name() -> ::core::result::Result<(), $crate::ClauseViolation> {
            let make = || $store;
            ($block_on)($crate::clauses::$name(&make))
        }
    )*};
}

/// Expands to a module of tests of a [`NodeRegistry`], one per clause. Works like [`suite!`](crate::suite).
///
/// # Examples
///
/// ```no_run
/// keyward_conformance::registry_suite! { mod memory; registry = keyward::store::MemoryStore::new(); }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! registry_suite {
    ($(#[$meta:meta])* mod $module:ident; registry = $registry:expr;) => {
        $crate::registry_suite! {
            $(#[$meta])* mod $module; block_on = $crate::block_on; registry = $registry;
        }
    };
    ($(#[$meta:meta])* mod $module:ident; block_on = $block_on:expr; registry = $registry:expr;) => {
        $(#[$meta])*
        mod $module {
            #[allow(unused_imports)]
            use super::*;

            $crate::for_each_registry_clause!(
                $crate::suite { @tests block_on = $block_on; store = $registry; }
            );
        }
    };
}

/// Expands to a module of tests of [`Documents`], one per clause. Works like [`suite!`](crate::suite).
///
/// # Examples
///
/// ```no_run
/// keyward_conformance::documents_suite! { mod memory; documents = keyward::store::MemoryStore::new(); }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! documents_suite {
    ($(#[$meta:meta])* mod $module:ident; documents = $documents:expr;) => {
        $crate::documents_suite! {
            $(#[$meta])* mod $module; block_on = $crate::block_on; documents = $documents;
        }
    };
    ($(#[$meta:meta])* mod $module:ident; block_on = $block_on:expr; documents = $documents:expr;) => {
        $(#[$meta])*
        mod $module {
            #[allow(unused_imports)]
            use super::*;

            $crate::for_each_documents_clause!(
                $crate::suite { @tests block_on = $block_on; store = $documents; }
            );
        }
    };
}

/// Expands to a module of tests of a [`UsageStore`], one per clause. Works like [`suite!`](crate::suite).
///
/// # Examples
///
/// ```no_run
/// keyward_conformance::usage_suite! { mod memory; usage = keyward::store::MemoryStore::new(); }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! usage_suite {
    ($(#[$meta:meta])* mod $module:ident; usage = $usage:expr;) => {
        $crate::usage_suite! {
            $(#[$meta])* mod $module; block_on = $crate::block_on; usage = $usage;
        }
    };
    ($(#[$meta:meta])* mod $module:ident; block_on = $block_on:expr; usage = $usage:expr;) => {
        $(#[$meta])*
        mod $module {
            #[allow(unused_imports)]
            use super::*;

            $crate::for_each_usage_clause!(
                $crate::suite { @tests block_on = $block_on; store = $usage; }
            );
        }
    };
}
