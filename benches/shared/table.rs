//! A table of measurements and their goals.

/// A row of the table.
struct TableRow {
    what: String,
    value: f64,
    goal: Option<Goal>,
    note: String,
}

#[derive(Clone, Copy, Debug)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }

    pub fn text(self) -> String {
        match self {
            Self::AtMost(most) => format!("<= {most}"),
            Self::AtLeast(least) => format!(">= {least}"),
        }
    }
}

#[derive(Default)]
pub struct Table(Vec<TableRow>);

impl Table {
    pub fn add(
        &mut self,
        what: impl Into<String>,
        value: f64,
        goal: impl Into<Option<Goal>>,
        note: impl Into<String>,
    ) {
        let (what, goal, note) = (what.into(), goal.into(), note.into());
        eprintln!("  {what}: {value:.2} ({note})");
        self.0.push(TableRow {
            what,
            value,
            goal,
            note,
        });
    }

    /// Returns whether every goal is met.
    pub fn is_met(&self) -> bool {
        self.0
            .iter()
            .all(|line| line.goal.is_none_or(|goal| goal.holds(line.value)))
    }

    pub fn print(&self, json: bool) {
        if json {
            return self.print_json();
        }
        let head = "measure";
        let widths = self.0.iter().map(|line| line.what.chars().count());
        let width = widths.max().unwrap_or_default();
        println!("{head:<width$}    value     goal   met  in this run");
        for line in &self.0 {
            let goal = line.goal.map(Goal::text).unwrap_or_default();
            let met = line.goal.map(|goal| goal.holds(line.value));
            let met = met.map_or("", |met| if met { "yes" } else { "NO" });
            let TableRow {
                what, value, note, ..
            } = line;
            println!("{what:<width$} {value:>8.2}  {goal:>7}  {met:>4}  {note}");
        }
    }

    fn print_json(&self) {
        let line = |line: &TableRow| {
            serde_json::json!({
                "measure": line.what,
                "value": line.value,
                "goal": line.goal.map(Goal::text),
                "met": line.goal.map(|goal| goal.holds(line.value)),
                "note": line.note,
            })
        };
        let lines: Vec<_> = self.0.iter().map(line).collect();
        println!("{:#}", serde_json::Value::Array(lines));
    }
}

/// The command-line options of a benchmark.
#[derive(Debug, Default)]
pub struct BenchOptions {
    pub quick: bool,
    pub json: bool,
    pub only: Option<String>,
}

impl BenchOptions {
    /// Parses `--quick`, `--json` and `--only part,part`.
    pub fn read() -> Self {
        let mut asked = Self::default();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => asked.quick = true,
                "--json" => asked.json = true,
                "--only" => asked.only = arguments.next(),
                // `cargo bench` passes this argument to every benchmark.
                "--bench" => {}
                other => panic!("unknown argument {other}"),
            }
        }
        asked
    }

    pub fn wants(&self, part: &str) -> bool {
        self.only
            .as_ref()
            .is_none_or(|only| only.split(',').any(|only| only == part))
    }
}
