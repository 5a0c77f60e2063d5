use std::time::Duration;

use super::written::keys;
use super::*;
use crate::units::{GIB, MIB};

const MINIMAL: &str = r#"
    listen.nbd = "127.0.0.1:10809"
    remote.url = "file:umbra-remote"
    [[volume]]
    name = "disk0"
    store = "file:disk0.img"
"#;

fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proxy-configs");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|extension| extension == "toml")).collect()
}

fn full() -> PathBuf {
    examples().into_iter().find(|file| file.ends_with("full.toml")).unwrap()
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    super::parse(text, Path::new("/etc/umbra"))
}

/// A volume and what it needs, with more keys in its section.
fn with_volume(keys: &str) -> Result<Config, ConfigError> {
    parse(&format!("listen.nbd = \"localhost:1\"\nremote.url = \"s3://bucket\"\n[[volume]]\nname = \"disk0\"\n{keys}"))
}

#[track_caller]
fn problems(result: Result<Config, ConfigError>) -> Vec<String> {
    match result {
        Err(ConfigError::Invalid { problems, .. }) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn problem(result: Result<Config, ConfigError>) -> String {
    let problems = problems(result);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems.into_iter().next().unwrap()
}

#[test]
fn full_toml_says_what_holds_without_it() {
    let text = std::fs::read_to_string(full()).unwrap();
    assert_eq!(parse(&text).unwrap(), parse(MINIMAL).unwrap());
}

#[test]
fn every_key_stands_in_its_section_of_full_toml() {
    let text = std::fs::read_to_string(full()).unwrap();
    let mut section = "";
    let mut written = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
            written.push(section.rsplit_once('.').unwrap_or(("", section)));
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ") {
            written.push((section, key));
        }
    }
    let sections = [
        ("", keys::<written::Top>()),
        ("listen", keys::<written::Listen>()),
        ("iscsi", keys::<written::Iscsi>()),
        ("remote", keys::<written::Remote>()),
        ("volume", keys::<written::Volume>()),
        ("log", keys::<written::Log>()),
        ("snapshot", keys::<written::Snapshot>()),
        ("upload", keys::<written::Upload>()),
    ];
    for (section, keys) in sections {
        assert!(!keys.is_empty());
        for key in keys {
            assert!(written.contains(&(section, key)), "[{section}] {key} is not in full.toml");
        }
    }
}

#[test]
fn every_example_is_right() {
    let examples = examples();
    assert!(examples.len() >= 7, "{examples:?}");
    for file in examples {
        load(&file).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn the_examples_have_every_kind_of_store_and_remote() {
    let configs: Vec<Config> = examples().iter().map(|file| load(file).unwrap()).collect();
    let has_store = |kind: fn(&Store) -> bool| configs.iter().flat_map(|c| &c.volumes).any(|v| kind(&v.store));
    let has_place = |kind: fn(&Place) -> bool| configs.iter().any(|c| kind(&c.remote.place));
    assert!(has_store(|s| matches!(s, Store::File { create: Some(_), .. })));
    assert!(has_store(|s| matches!(s, Store::File { create: None, .. })));
    assert!(has_store(|s| matches!(s, Store::Device { .. })));
    assert!(has_store(|s| matches!(s, Store::Nbd { uri } if uri.starts_with("nbd://"))));
    assert!(has_store(|s| matches!(s, Store::Nbd { uri } if uri.starts_with("nbd+unix://"))));
    assert!(has_store(|s| matches!(s, Store::Iscsi { chap: Some(_), .. })));
    assert!(has_place(|p| matches!(p, Place::Folder(_))));
    assert!(has_place(|p| matches!(p, Place::S3 { .. })));
    assert!(has_place(|p| matches!(p, Place::Azure { .. })));
    assert!(has_place(|p| matches!(p, Place::Gcs { .. })));
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config.state, Path::new("/etc/umbra/umbra-state"));
    assert_eq!(
        config.log,
        Log { size: 8 * GIB, sync: SyncMode::Background, throttle: None, when_marks_fail: WhenMarksFail::Forward }
    );
    assert_eq!(config.snapshot.epoch, Duration::from_secs(5));
    assert_eq!(config.upload, Upload { rate: Rate::Unlimited, parallel: 8 });
    assert_eq!(config.remote.fencing, Fencing::ConditionalPut);
    assert_eq!(config.volumes[0].max_age, Duration::from_secs(60));
    let path = "/etc/umbra/disk0.img".into();
    assert_eq!(config.volumes[0].store, Store::File { path, create: None, direct: false });
}

#[test]
fn paths_are_relative_to_the_folder_of_the_file() {
    let config = parse(
        r#"
        state = "s"
        listen.nbd = ["unix:n.sock", "[::1]:10809"]
        remote.url = "file:r"
        volume = [
            { name = "a", store = "file:a b" },
            { name = "b", store = "file:///srv/b" },
            { name = "c", store = "nbd+unix:///x?socket=c%20c.sock" },
            { name = "d", store = "nbd+unix:///?socket=/run/d.sock" },
        ]
        "#,
    );
    let config = config.unwrap();
    assert_eq!(config.state, Path::new("/etc/umbra/s"));
    let shown: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["unix:/etc/umbra/n.sock", "[::1]:10809"]);
    assert_eq!(config.remote.place.to_string(), "file:/etc/umbra/r");
    let stores: Vec<String> = config.volumes.iter().map(|volume| volume.store.to_string()).collect();
    let c = "nbd+unix:///x?socket=/etc/umbra/c%20c.sock";
    assert_eq!(stores, ["file:/etc/umbra/a b", "file:/srv/b", c, "nbd+unix:///?socket=/run/d.sock"]);
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let result = parse(
        r#"
        stat = "x"
        [listn]
        [remote]
        url = "ftp://x/y"
        [[volume]]
        name = "Disk 0"
        stroe = "file:x"
        [log]
        size = "100MB"
        sync = "always"
        [snapshot]
        epoch = 5
        [upload]
        rate = "10KiB/s"
        parallel = 65
        "#,
    );
    let problems = problems(result);
    let expected = [
        r#"top of the file: stat: unknown; did you mean "state"?"#,
        r#"top of the file: listn: unknown; did you mean "listen"?"#,
        r#"[[volume]] "Disk 0": stroe: unknown; did you mean "store"?"#,
        "[log] sync: unknown variant `always`, expected `background` or `flush`",
        r#"[snapshot] epoch: expected a duration with its unit, as text: "5s""#,
        r#"[remote] url = "ftp://x/y": names no remote; write file:FOLDER, s3://BUCKET/PREFIX, az://"#,
        "[listen] nbd: is missing; write for example nbd = \"127.0.0.1:10809\"",
        r#"[[volume]] "Disk 0": name = "Disk 0": is not a name for a volume; write 1 to 63 of"#,
        "[[volume]] \"Disk 0\": store: is missing; write for example store = \"file:disk0.img\"",
        r#"[log] size = "100MB": is too small for 1 volume(s): each needs at least 4 segments of 64.0 MiB; write 256"#,
        r#"[upload] rate = "10KiB/s": is too slow"#,
        "[upload] parallel = 65: is out of range; write 1 to 64",
    ];
    for expected in expected {
        assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{expected}\nnot in {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn the_file_and_each_problem_have_a_line() {
    let error = parse("x = 1\nlisten = 1").unwrap_err().to_string();
    assert_eq!(error.lines().next(), Some("configuration: 5 problems"));
    assert_eq!(error.lines().count(), 6, "{error}");
    let error = load(Path::new("/nonexistent/umbra.toml")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the configuration /nonexistent/umbra.toml");
}

#[test]
fn a_slip_of_syntax_is_named_by_line_and_its_text_is_not_shown() {
    let error = parse("state = \"x\"\n[remote.options]\naws_secret_access_key = \"hush-hush\n").unwrap_err();
    assert!(matches!(error, ConfigError::Syntax { line: 3, .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
}

#[test]
fn what_is_accepted_as_an_nbd_uri_can_be_opened_as_one() {
    for uri in
        ["nbd+unix:///a%2+0b?socket=s.sock", "nbd+unix:///x?socket=%ff", "nbd://h/%", "nbd://h/%ff", "nbd://h/a b"]
    {
        let result = parse(&MINIMAL.replace("file:disk0.img", uri));
        if let Ok(config) = &result {
            let Store::Nbd { uri } = &config.volumes[0].store else { panic!("{config:?}") };
            assert!(uri.parse::<crate::nbd::Uri>().is_ok(), "{uri}");
        }
        assert_eq!(result.is_ok(), uri == "nbd://h/a b", "{uri}");
    }
}

#[test]
fn a_secret_is_shown_nowhere() {
    let options = "[remote.options]\naws_secret_access_key = \"hush-hush\"\n";
    let config = parse(&format!("{}{options}", MINIMAL.replace("file:umbra-remote", "s3://bucket/a/b"))).unwrap();
    assert!(!format!("{config:?}").contains("hush"));
    assert_eq!(config.remote.options.expose()["aws_secret_access_key"], "hush-hush");

    let wrong = [
        MINIMAL.replace("file:umbra-remote", "s3://user:hush-hush@bucket/"),
        MINIMAL.replace("file:umbra-remote", "s3://user:hush-hush@"),
        MINIMAL.replace("file:disk0.img", "nbd://user:hush-hush@host/"),
        MINIMAL.replace("file:disk0.img", "iscsi://user%hush-hush@host/iqn.2003-01.org.array:vol1/0"),
        format!("{MINIMAL}{options}"),
        format!("{MINIMAL}[remote.options]\naws_tokken = \"hush-hush\""),
        format!("{MINIMAL}[remote.options]\naws_token = [\"hush-hush\"]"),
    ];
    for text in wrong {
        let error = parse(&text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
    }
}

#[test]
fn an_option_that_object_store_would_pass_over_is_refused() {
    let with = |option: &str| {
        problem(parse(&format!(
            "{}[remote.options]\n{option}",
            MINIMAL.replace("file:umbra-remote", "s3://bucket/prefix")
        )))
    };
    assert!(with("azure_storage_account_name = \"x\"").contains("is not known to object_store for S3"));
    assert!(with("aws_bucket = \"other\"").contains("is taken from url"));
    assert!(with("aws_allow_http = true").contains("write the value in quotation marks"));
}

#[test]
fn a_store_is_what_its_text_says_or_refused_with_a_remedy() {
    let remedy = |store: &str| problem(with_volume(&format!("store = \"{store}\"")));
    assert!(remedy("disk0.img").contains("write \"file:disk0.img\" for a file"));
    assert!(remedy("file:").contains("is empty"));
    assert!(remedy("ftp://host/x").contains("names no store"));
    assert!(remedy("iscsi://host/x").contains("\"x\" is not the name of a target"));
    assert!(remedy("iscsi://host/iqn.2003-01.org.array:vol1").contains("write a number from 0 to 16383"));
    assert!(remedy("iscsi://a%hush-hush@host/iqn.2003-01.org.array:vol1/0").contains("secret"));
    assert!(remedy("nbds://host/x").contains("TLS is not supported"));
    assert!(remedy("nbd:///x").contains("it names no host"));
    assert!(remedy("nbd+unix:///x").contains("it names no socket"));
    assert!(remedy("nbd+unix://host/x?socket=/s").contains("three slashes"));
    assert!(remedy("nbd+unix:///x?socket=/s&tls=1").contains("parameter"));
    assert!(remedy("nbd+unix:///a%2+b?socket=/s").contains("percent-encoded"));
    assert!(remedy("nbd://host/%ff").contains("percent-encoded"));
    assert!(remedy(&format!("nbd://host/{}", "x".repeat(4097))).contains("name of its export is too long"));
}

#[test]
fn what_is_for_files_is_refused_for_others() {
    assert!(problem(with_volume("store = \"/dev/sdx\"\ncreate = \"1GiB\"")).contains("the store is a device"));
    assert!(problem(with_volume("store = \"nbd://h/x\"\ndirect = true")).contains("the store is an NBD export"));
    let lun = "store = \"iscsi://h/iqn.2003-01.org.array:vol1/0\"";
    assert!(problem(with_volume(&format!("{lun}\ndirect = true"))).contains("the store is an iSCSI LUN"));
    let chap = "chap = { user = \"a\", secret_file = \"b\" }";
    assert!(problem(with_volume(&format!("store = \"file:x\"\n{chap}"))).contains("for iscsi:// stores only"));
    assert!(problem(with_volume("store = \"file:x\"\ncreate = 0")).contains("is out of range"));
    assert!(problem(with_volume("store = \"file:x\"\ncreate = \"65TiB\"")).contains("is out of range"));
    assert!(problem(with_volume("store = \"file:x\"\ncreate = 1000001\ndirect = true")).contains("multiple of 4096"));
    let config = with_volume("store = \"file:x\"\ncreate = 1000001").unwrap();
    assert!(matches!(config.volumes[0].store, Store::File { create: Some(1_000_001), direct: false, .. }));
}

#[test]
fn one_disk_is_one_volume_and_one_name_too() {
    let second = |keys: &str| problem(with_volume(&format!("store = \"file:x/y\"\n[[volume]]\n{keys}")));
    assert!(second("name = \"b\"\nstore = \"file:./x/../x/y\"").contains("is the store of volume number 1 as well"));
    assert!(second("name = \"b\"\nstore = \"/etc/umbra/x/y\"").contains("is the store of volume number 1 as well"));
    assert!(second("name = \"disk0\"\nstore = \"file:z\"").contains("is the name of volume number 1 as well"));

    let lun = |store: &str| format!("store = \"iscsi://{store}\"\n");
    let first = lun("10.0.0.5/iqn.2003-01.org.array:vol1/0");
    let beside = |store| with_volume(&format!("{first}[[volume]]\nname = \"b\"\n{}", lun(store)));
    let twice = problem(beside("10.0.1.5:3261/iqn.2003-01.org.array:vol1/0"));
    assert!(twice.contains("is the store of volume number 1 as well"), "another portal is another way: {twice}");
    beside("10.0.0.5/iqn.2003-01.org.array:vol1/1").unwrap();
    beside("10.0.0.5/iqn.2003-01.org.array:vol2/0").unwrap();
}

#[test]
fn a_lun_is_opened_as_somebody_who_can_prove_it() {
    let lun = "store = \"iscsi://[::1]/iqn.2003-01.org.array:vol1/3\"\n";
    let with = |keys: &str| with_volume(&format!("{lun}{keys}"));
    let config = with("chap = { user = \"us\", secret_file = \"s\", peer_user = \"it\", peer_secret_file = \"p\" }");
    let Store::Iscsi { url, chap: Some(chap) } = &config.unwrap().volumes[0].store else { panic!("no LUN") };
    assert_eq!(url.to_string(), "iscsi://[::1]:3260/iqn.2003-01.org.array:vol1/3");
    let login = |user: &str, file: &str| Login { user: user.into(), secret_file: Path::new("/etc/umbra").join(file) };
    assert_eq!(*chap, Chap { initiator: login("us", "s"), target: Some(login("it", "p")) });

    let half = problem(with("chap = { user = \"us\", secret_file = \"s\", peer_user = \"it\" }"));
    assert!(half.starts_with("[[volume]] \"disk0\": chap.peer_user: has to stand beside peer_secret_file"), "{half}");
    let same =
        problem(with("chap = { user = \"us\", secret_file = \"s\", peer_user = \"it\", peer_secret_file = \"s\" }"));
    assert!(same.contains("mutual CHAP needs two"), "{same}");
}

#[test]
fn an_address_that_is_no_portal_is_told_what_a_portal_is() {
    for address in ["127.0.0.1", "unix:/run/x.sock", "unix:"] {
        let wrong = problem(parse(&format!("{MINIMAL}[listen]\niscsi = \"{address}\"").replace("listen.nbd", "#")));
        let says = "is not HOST:PORT, like \"0.0.0.0:3260\", and iSCSI knows no other addresses";
        assert_eq!(wrong, format!("[listen] iscsi = {address:?}: {says}"));
    }
}

#[test]
fn chap_is_written_where_it_protects_something() {
    let chap = "[iscsi]\nchap = { user = \"a\", secret_file = \"b\" }";
    let alone = problem(parse(&format!("{MINIMAL}{chap}")));
    assert!(alone.starts_with("[iscsi] chap: protects nothing"), "{alone}");
    assert!(alone.contains("write [listen] iscsi too, or leave it out"), "{alone}");
    parse(&format!("listen.iscsi = \"127.0.0.1:3260\"\n{MINIMAL}{chap}")).unwrap();
    let other = problem(parse(&format!("listen.iscsi = 3260\n{MINIMAL}{chap}")));
    assert!(other.starts_with("[listen] iscsi: "), "one problem is one: {other}");
}

#[test]
fn a_chap_that_is_none_is_not_repeated() {
    let lun = "store = \"iscsi://h/iqn.2003-01.org.array:vol1/0\"";
    for chap in
        ["\"hush-hush\"", "[\"a\", \"hush-hush\"]", "{ user = \"a\", secret_file = [\"hush-hush\"] }", "12345678"]
    {
        for wrong in [
            problem(parse(&format!("{MINIMAL}[iscsi]\nchap = {chap}"))),
            problem(with_volume(&format!("{lun}\nchap = {chap}"))),
        ] {
            assert!(wrong.contains("write { user = \"NAME\", secret_file = \"PATH\" }"), "{wrong}");
            assert!(!wrong.contains("hush-hush") && !wrong.contains("12345678"), "{wrong}");
        }
    }
    let unknown = problem(with_volume(&format!("{lun}\nchap = {{ user = \"a\", secret = \"hush-hush\" }}")));
    assert!(unknown.contains("unknown field `secret`") && !unknown.contains("hush-hush"), "{unknown}");
}

#[test]
fn our_name_as_an_initiator_is_the_state_folders_or_what_is_written() {
    let with = |keys: &str| parse(&format!("{MINIMAL}[iscsi]\n{keys}")).map(|config| config.initiator);
    let id = crate::format::InstanceId([0xab; 16]);
    let own = with("iqn = \"iqn.2020-02.org.example\"").unwrap();
    assert_eq!(own.known(Some(id)).unwrap(), format!("iqn.2020-02.org.example:{}", "ab".repeat(16)));
    assert_eq!(own.known(None), None, "the state folder has not drawn it yet");
    for name in
        ["iqn.2020-02.org.example:gw:1", "iqn.2020-02.org.example", "eui.02004567a425678d", "naa.52004567ba64678d"]
    {
        let named = with(&format!("initiator = \"{name}\"")).unwrap();
        assert_eq!(named.known(None).as_deref(), Some(name));
    }
    for name in
        ["", "gw", "iqn.2020-13.org.example:a", "iqn.2020-02.org.example:A", "iqn.2020-02.org.example:a b", "eui.1"]
    {
        let wrong = problem(parse(&format!("{MINIMAL}[iscsi]\ninitiator = \"{name}\"")));
        assert!(wrong.contains("is not an iSCSI name; write iqn."), "{wrong}");
    }
}

#[test]
fn limits_that_depend_on_each_other_are_kept_together() {
    let with = |text: &str| parse(&format!("{MINIMAL}{text}"));
    let error = problem(with("max_age = \"9s\""));
    assert!(error.contains("less than twice the epoch (5s)") && error.contains("write 10s or more"), "{error}");
    with("max_age = \"2min\"\n[snapshot]\nepoch = \"60s\"").unwrap();
    assert!(problem(with("[snapshot]\nepoch = \"61s\"")).contains("write 1s to 1m"));
    let two = "[[volume]]\nname = \"b\"\nstore = \"file:b\"\n[log]\nsize = ";
    assert!(problem(with(&format!("{two}\"511MiB\""))).contains("too small for 2 volume(s)"));
    assert_eq!(with(&format!("{two}\"512MiB\"")).unwrap().log.size, 512 * MIB);
    assert!(
        problem(parse(&MINIMAL.replace("umbra-remote", "./umbra-state"))).contains("is the remote's folder as well")
    );
}

#[test]
fn a_rate_is_bytes_per_second_with_or_without_saying_so() {
    let rate = |rate: &str| parse(&format!("{MINIMAL}[upload]\nrate = {rate}")).map(|config| config.upload.rate);
    for text in ["\"10MiB\"", "\"10MiB/s\"", "\"10 MiB/s\"", "10485760"] {
        assert_eq!(rate(text).unwrap(), Rate::BytesPerSecond(10 * MIB), "{text}");
    }
    assert_eq!(rate("\"unlimited\"").unwrap(), Rate::Unlimited);
    for text in ["\"10Mbit/s\"", "\"fast\"", "-1", "\"\""] {
        assert!(rate(text).is_err(), "{text}");
    }
}

#[test]
fn an_address_is_a_host_with_a_port_or_a_path() {
    let listen = |text: &str| parse(&MINIMAL.replace("127.0.0.1:10809", text)).map(|config| config.listen);
    for text in ["0.0.0.0:10809", "[::]:0", "gateway.example:1", "unix:/run/x.sock"] {
        assert_eq!(listen(text).unwrap()[0].to_string(), text);
    }
    for text in ["10809", ":10809", "::1:10809", "[::1]", "host:", "host:65536", "*:1", "unix:", "tcp://h:1"] {
        assert!(listen(text).is_err(), "{text}");
    }
    let long = format!("unix:{}", "x".repeat(107));
    assert!(problem(parse(&MINIMAL.replace("127.0.0.1:10809", &long))).contains("107 bytes"));
    let twice = MINIMAL.replace("\"127.0.0.1:10809\"", "[\"h:1\", \"h:1\"]");
    assert!(problem(parse(&twice)).contains("stands twice"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(?s).{0,200}") {
        let _ = parse(&text);
        let base = Path::new("/etc");
        let _ = (Listen::parse(&text, base), Store::parse(&text, base), Place::parse(&text, base));
        let _ = parse(&format!("{MINIMAL}{text}"));
    }
}
