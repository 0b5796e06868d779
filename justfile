# Recipes for daily work. `just` alone lists them; CONTRIBUTING.md gives the plain cargo commands.

# Lists the recipes.
default:
    @just --list --unsorted

# Compiles the library with all features, without tests.
check:
    cargo check -p keyward --all-features --lib

# The fast loop: format, compile, unit tests of the library.
quick: fmt-check check
    cargo test -p keyward --all-features --lib

# Lints everything, with warnings as errors.
lint: fmt-check
    cargo clippy --workspace --all-targets --all-features -- -D warnings

# Formats everything.
fmt:
    cargo fmt --all

# Fails if `just fmt` would change a file.
fmt-check:
    cargo fmt --all --check

# Runs tests: all of them, or what the arguments select, such as `just test --test it invariant_1`.
test *args:
    cargo test --workspace --all-features {{ args }}

# Runs the import rule and the other house rules.
house:
    cargo test --workspace --all-features --test it house

# Builds the documentation, with broken links as errors.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --all-features

# Runs the example service, with arguments such as `just run --listen 127.0.0.1:3001`.
run *args:
    cargo run --example service -- {{ args }}

# Runs the gate that every change passes.
ci:
    .ci/run

# Runs the gate and its long tier.
ci-long:
    .ci/run --long
