//! A recorder of metrics, for tests of gauges and counters.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

/// A recorder that keeps the last value of each metric, by name and labels.
#[derive(Default)]
pub struct Kept(pub Mutex<BTreeMap<String, Arc<AtomicU64>>>);

impl Kept {
    fn place(&self, key: &Key) -> Arc<AtomicU64> {
        let labels: String = key
            .labels()
            .map(|label| format!(" {}", label.value()))
            .collect();
        let name = format!("{}{labels}", key.name());
        self.0.lock().unwrap().entry(name).or_default().clone()
    }

    pub fn count(&self, name: &str) -> u64 {
        let kept = self.0.lock().unwrap();
        kept.get(name)
            .map_or(0, |place| place.load(Ordering::SeqCst))
    }

    pub fn gauge(&self, name: &str) -> f64 {
        f64::from_bits(self.count(name))
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.place(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.place(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
