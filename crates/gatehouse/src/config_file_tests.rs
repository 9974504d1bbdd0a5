//! What a file and the environment make of the defaults.

use gatehouse_service::config::Sources;

use super::Config;

/// One changed limit once took the others away without a word.
#[test]
fn what_is_written_comes_to_the_defaults_and_is_shown_as_it_is_read() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("gatehouse.toml");
    let load = |text: &str, variables: &[(&str, &str)]| -> Config {
        std::fs::write(&file, text).unwrap();
        let sources = Sources { file: Some(&file), ..Sources::default() };
        gatehouse_service::config::load(&sources, variables.iter().copied()).unwrap()
    };
    let written = "[rate_limits.rules.classes.job-create.ip]\ncapacity = 5\n[rate_limits.rules.classes.token]\n\
                   [rate_limits.rules.person]\ncapacity = 7\n[job.kinds.other]\n";
    let config = load(written, &[("GATEHOUSE_RATE_LIMITS__RULES__IP__CAPACITY", "6")]);
    let (rules, defaults) = (&config.rate_limits.rules, gatehouse_ratelimit::Rules::default());
    assert_eq!(rules.classes["sign-in"], defaults.classes["sign-in"]);
    assert_eq!(rules.classes["job-create"].ip.map(|quota| (quota.capacity, quota.interval_s)), Some((5, 60)));
    assert_eq!((rules.ip.capacity, rules.ip.interval_s), (6, 60));
    assert_eq!((rules.person.capacity, rules.person.interval_s), (7, 60));
    assert_eq!(config.job.kinds.keys().collect::<Vec<_>>(), ["optimize", "other"]);
    let freed =
        load("[rate_limits.rules.classes]\nsign-in = {}\n[job.kinds.optimize]\nenabled = false\n", &[]);
    assert!(freed.rate_limits.rules.classes["sign-in"].ip.is_none());
    let all_freed = load("", &[("GATEHOUSE_RATE_LIMITS__RULES__CLASSES", "{}")]);
    assert!(all_freed.rate_limits.rules.classes.is_empty());
    for config in [config, freed, all_freed] {
        let shown = toml::to_string_pretty(&config).unwrap();
        let again = load(&shown, &[]);
        assert_eq!(again.rate_limits, config.rate_limits, "{shown}");
        assert_eq!(toml::to_string_pretty(&again).unwrap(), shown);
    }
}
