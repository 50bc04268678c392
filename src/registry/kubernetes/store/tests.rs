use super::*;
use proptest::prelude::*;

#[test]
fn names_become_keys_that_a_config_map_takes() {
    for (name, key) in [
        ("users", "users"),
        ("user_service.prod", "user_service.prod"),
        ("users.prod:8080", "users.prod_3A8080"),
        ("outbound|80||users", "outbound_7C80_7C_7Cusers"),
        ("a_3A", "a_5F3A"),
        ("a_3a", "a_3a"),
        (".", "_2E"),
        ("..a", "_2E.a"),
        (".a", ".a"),
        ("ä", "_C3_A4"),
    ] {
        assert_eq!(escaped(name), key);
        assert_eq!(unescaped(key).as_deref(), Some(name));
    }
    for key in ["a_41", "_FF", "_2Ea"] {
        assert_eq!(unescaped(key), None, "{key} is written otherwise, or is no text");
    }
}

#[test]
fn paths_become_names_of_config_maps() {
    let found = |key| place(key).map_err(|error| error.to_string());
    assert_eq!(found("pillion/routes/users"), Ok(("pillion-routes".into(), "users".into())));
    assert_eq!(found("a.b/c"), Ok(("a.b".into(), "c".into())));
    for key in ["users", "/users", "Pillion/users", "a_b/users", "a//users", "-a/users", "a./users", "a..b/users"] {
        assert!(found(key).unwrap_err().contains("makes no name for a ConfigMap"), "{key}");
    }
    let longest = "a".repeat(LONGEST_NAME);
    assert!(map_of(&longest).is_ok() && map_of(&format!("{longest}a")).is_err());
}

#[test]
fn every_lock_has_a_lease_of_its_own() {
    assert_eq!(lease_of("pillion/lock"), "pillion-lock");
    let long = "a".repeat(1000);
    let odd = ["pillion/lock/a_b", "pillion/lock/a:b", "pillion/lock/A-b", &long, "ä", ""];
    let mut names: Vec<_> = odd.into_iter().map(lease_of).collect();
    assert!(names[0].starts_with("lock-pillion-lock-a-b-"), "{}", names[0]);
    for name in &names {
        assert_eq!(KubernetesRegistry::config_map(name).as_ref(), Some(name), "it can be one");
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), odd.len());
}

proptest! {
    #[test]
    fn no_two_names_have_the_same_key(name in "[a-c_.A-F0-9:ä-]{1,12}") {
        let key = escaped(&name);
        let taken = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        prop_assert!(key.bytes().all(taken) && key != "." && !key.starts_with(".."), "{}", key);
        prop_assert_eq!(unescaped(&key), Some(name));
    }
}
