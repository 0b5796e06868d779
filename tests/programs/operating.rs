//! Runs every command of the pages `docs/operating-file.md` and `docs/operating-postgresql.md`, in order, with
//! real processes.

use support::postgres::{Server, programs};

use crate::page::{PageReader, PageStep, page, steps};

fn follow(page: &str) {
    let mut reader = PageReader::new("first_service");
    let mut shown = 0;
    let steps = steps(page);
    for step in &steps {
        reader.follow(step);
        shown += step.expected.len();
    }
    let ran = steps.len();
    assert!(ran >= 12 && shown >= 10, "{ran} blocks with {shown} lines");
}

#[test]
fn every_command_of_the_page_about_a_file_works_in_order() {
    follow(&page("operating-file.md"));
}

#[test]
fn every_command_of_the_page_about_postgresql_works_in_order() {
    let server = Server::start("fsync = off");
    let address = "postgres://keyward:password@db.example/app";
    let page = page("operating-postgresql.md");
    assert!(page.contains(address));
    let path = programs().display().to_string();
    let url = server.url();
    let section = "host=db.example\nuser=keyward\npassword=password\ndbname=app";
    assert!(page.contains(section));
    let page = page.replace(section, &url.replace(' ', "\n"));
    let exported = format!("'{url}'; export PATH=\"$PATH:{path}\"");
    follow(&page.replace(address, &exported));
}

/// Other users of the machine see the arguments of a program.
#[test]
fn no_command_of_a_page_has_the_store_in_its_arguments() {
    for name in ["operating-file.md", "operating-postgresql.md", "moving.md"] {
        let in_arguments = |step: &PageStep| step.command.contains("$KEYWARD_STORE");
        assert!(!steps(&page(name)).iter().any(in_arguments), "{name}");
    }
}
