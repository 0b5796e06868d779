//! The page `docs/first-service.md`, as its readers run it: every command, in order, with real processes.

use std::net::TcpListener;

use crate::page::{PageReader, page, steps};

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn every_command_of_the_page_works_in_order() {
    let (first, second) = (free_address(), free_address());
    let page = page("first-service.md");
    let page = page.replace("127.0.0.1:3000", &first);
    let page = page.replace("127.0.0.1:3001", &second);
    let page = page.replace("cargo run\n", &format!("cargo run -- {first}\n"));
    let mut reader = PageReader::new("first_service");
    let mut shown = 0;
    // The first block adds dependencies, which the example has.
    let steps = &steps(&page)[1..];
    for step in steps {
        reader.follow(step);
        shown += step.expected.len();
    }
    reader.stop();
    let ran = steps.len();
    assert!(ran >= 9 && shown >= 9, "{ran} blocks with {shown} lines");
}
