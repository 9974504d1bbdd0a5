//! The benchmark itself: a run leaves nothing behind that the next one of its series would measure.

use std::process::Command;

use serde_json::Value;

#[test]
fn a_series_of_runs_gives_every_figure_in_each() {
    let output = Command::new(env!("CARGO_BIN_EXE_gatehouse-bench"))
        .args(["job", "--runs", "2", "--seconds", "2", "--idle-streams", "20", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let figures = report["figures"].as_array().unwrap();
    for key in ["job.submit-to-finish", "job.submit-to-finish@sqlite", "job.sse", "job.sse-memory-job"] {
        let figure = figures.iter().find(|figure| figure["key"] == key).unwrap();
        let values = figure["values"].as_array().unwrap();
        assert_eq!(values.len(), 2, "{figure}");
        assert!(figure["value"].as_f64().unwrap() > 0.0 || key.contains("memory"), "{figure}");
    }
}
