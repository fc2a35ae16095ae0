//! The repository's own files: the compose file and the Dockerfile (checked without an engine), the README's commands, CI, the docs.

use saphyr::{LoadableYamlNode, Yaml};

use crate::sources::{all, assert_none, read, root, rust};

fn yaml(path: &str) -> Yaml<'static> {
    let text: &'static str = Box::leak(read(path).into_boxed_str());
    let mut documents = Yaml::load_from_str(text).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(documents.len(), 1, "{path} holds one document");
    documents.remove(0)
}

#[test]
fn every_yaml_file_parses() {
    let files = all();
    let yamls = files
        .iter()
        .filter(|source| source.path.ends_with(".yaml") || source.path.ends_with(".yml"));
    // Fixtures may be invalid on purpose.
    let broken: Vec<String> = yamls
        .filter(|source| !source.is_test() && !source.path.contains("/templates/"))
        .filter_map(|source| {
            Yaml::load_from_str(&source.text)
                .err()
                .map(|error| format!("{}: {error}", source.path))
        })
        .collect();
    assert_none("not YAML:", &broken);
}

#[test]
fn the_readme_shows_the_handler_that_handler_new_generates() {
    let readme = read("README.md");
    let (_, block) = readme.split_once("```rust\n").expect("a handler");
    let (block, _) = block.split_once("```").expect("its end");
    let made = read("handler-sdk/templates/rust/lib.rs.in")
        .replace("{{type}}", "MyHandler")
        .replace("{{name}}", "my-handler");
    assert!(
        made.contains(block.trim_end()),
        "the README's handler differs from the template's:\n{block}"
    );
}

#[test]
fn the_compose_file_pins_versions_and_has_health_checks() {
    let compose = yaml("docker-compose.yml");
    let services = compose["services"].as_mapping().expect("services");
    let mut broken = Vec::new();
    for name in [
        "kafka",
        "etcd",
        "zookeeper",
        "prometheus",
        "grafana",
        "sluicegate",
    ] {
        if compose["services"].as_mapping_get(name).is_none() {
            broken.push(format!("service {name} is missing"));
        }
    }
    for (name, service) in services {
        let name = name.as_str().expect("a service's name");
        match service.as_mapping_get("image").and_then(Yaml::as_str) {
            Some(image) => match image.rsplit_once(':') {
                Some((_, tag))
                    if tag != "latest"
                        && tag.contains(|character: char| character.is_ascii_digit()) => {}
                _ => broken.push(format!("{name}: pin the version of image {image}")),
            },
            None if service.as_mapping_get("build").is_some() => {}
            None => broken.push(format!("{name} has neither an image nor a build")),
        }
        if service
            .as_mapping_get("healthcheck")
            .and_then(|check| check.as_mapping_get("test"))
            .is_none()
        {
            broken.push(format!("{name} has no healthcheck"));
        }
    }
    assert_none("docker-compose.yml:", &broken);
}

#[test]
fn files_mounted_by_the_compose_file_exist() {
    let compose = yaml("docker-compose.yml");
    let mut broken = Vec::new();
    for (name, service) in compose["services"].as_mapping().expect("services") {
        let volumes = service.as_mapping_get("volumes").and_then(Yaml::as_vec);
        for volume in volumes.into_iter().flatten().filter_map(Yaml::as_str) {
            let from = volume.split(':').next().unwrap_or_default();
            if from.starts_with("./") && !root().join(from).exists() {
                broken.push(format!(
                    "{}: {from} does not exist",
                    name.as_str().unwrap_or_default()
                ));
            }
        }
    }
    assert_none("docker-compose.yml mounts missing files:", &broken);
}

/// Whether a service of the compose file has a named volume at the folder.
fn keeps(service: &Yaml<'_>, folder: &str) -> bool {
    let volumes = service.as_mapping_get("volumes").and_then(Yaml::as_vec);
    let mut volumes = volumes.into_iter().flatten().filter_map(Yaml::as_str);
    volumes.any(|volume| {
        let (from, to) = volume.split_once(':').unwrap_or((volume, ""));
        !from.starts_with(['.', '/']) && to == folder
    })
}

#[test]
fn the_compose_files_volumes_contain_the_data() {
    let compose = yaml("docker-compose.yml");
    let service = |name: &str| &compose["services"][name];
    // With any KAFKA_* variable the image discards its own settings, including the data folder.
    let logs = service("kafka")["environment"]["KAFKA_LOG_DIRS"].as_str();
    let mut broken = Vec::new();
    for (name, folder) in [
        ("kafka", logs.unwrap_or("KAFKA_LOG_DIRS, which is not set")),
        ("etcd", "/var/lib/etcd"),
        ("zookeeper", "/data"),
        ("zookeeper", "/datalog"),
        ("prometheus", "/prometheus"),
    ] {
        if !keeps(service(name), folder) {
            broken.push(format!("{name} has no named volume at {folder}"));
        }
    }
    let command = service("etcd")["command"].as_vec().expect("a command");
    if !command
        .iter()
        .any(|word| word.as_str() == Some("--data-dir=/var/lib/etcd"))
    {
        broken.push("etcd does not write to /var/lib/etcd".to_owned());
    }
    assert_none("docker-compose.yml loses data:", &broken);
}

#[test]
fn the_image_is_built_in_stages_and_runs_without_root() {
    let dockerfile = read("Dockerfile");
    let lines: Vec<&str> = dockerfile
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .collect();
    let stages: Vec<&&str> = lines
        .iter()
        .filter(|line| line.starts_with("FROM "))
        .collect();
    assert!(stages.len() >= 2, "build in one stage, run in another");
    for stage in &stages {
        let image = stage.split_whitespace().nth(1).unwrap_or_default();
        let pinned = image.contains(':') && !image.ends_with(":latest");
        assert!(
            pinned
                || lines
                    .iter()
                    .any(|line| line.contains(&format!("AS {image}"))),
            "pin {image}"
        );
    }
    let last = lines
        .iter()
        .rposition(|line| line.starts_with("FROM "))
        .expect("a stage");
    let user = lines[last..]
        .iter()
        .find_map(|line| line.strip_prefix("USER "))
        .expect("the last stage names its user");
    assert!(
        !["root", "0", "0:0"].contains(&user.trim()),
        "the service must not run as {user}"
    );
    assert!(
        lines[last..]
            .iter()
            .any(|line| line.starts_with("HEALTHCHECK ")),
        "the image has no HEALTHCHECK"
    );
    assert!(
        lines[last..]
            .iter()
            .any(|line| line.starts_with("ENTRYPOINT [")),
        "ENTRYPOINT in exec form, so that signals arrive"
    );
}

#[test]
fn ci_runs_the_readmes_test_command() {
    let gate = read(".ci/run");
    assert!(
        gate.contains("cargo xtask test"),
        ".ci/run runs cargo xtask test"
    );
    let readme = read("README.md");
    for command in ["cargo xtask demo", "cargo xtask test"] {
        assert!(readme.contains(command), "README.md names {command}");
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(root().join(".ci/run"))
        .expect(".ci/run exists")
        .permissions()
        .mode();
    assert_eq!(mode & 0o111, 0o111, ".ci/run is executable");
}

#[test]
fn the_required_documents_exist() {
    let needed = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "DEVELOPING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "deny.toml",
        "docs/guarantees.md",
        "docs/glossary.md",
        "docs/security.md",
        "docs/adr/template.md",
    ];
    let missing: Vec<String> = needed
        .iter()
        .filter(|path| !root().join(path).is_file())
        .map(|path| (*path).to_owned())
        .collect();
    assert_none("missing:", &missing);
    assert!(
        read("CHANGELOG.md").contains("## Unreleased"),
        "CHANGELOG.md collects changes under `## Unreleased`"
    );
}

#[test]
fn every_adr_states_its_evidence_and_its_drawbacks() {
    let mut broken = Vec::new();
    let files = all();
    let adrs: Vec<_> = files
        .iter()
        .filter(|source| source.path.starts_with("docs/adr/0"))
        .collect();
    assert!(adrs.len() >= 5, "only {} ADRs", adrs.len());
    for adr in adrs {
        for heading in [
            "## Decision",
            "## What confirms this",
            "## What is bad about it",
        ] {
            if !adr.text.contains(heading) {
                broken.push(format!("{} has no section {heading:?}", adr.path));
            }
        }
    }
    assert_none("an ADR without a required section:", &broken);
}

#[test]
fn links_between_documents_resolve() {
    let link = regex::Regex::new(r"\]\(([^)#\s]+)(#[^)]*)?\)").expect("a regex");
    let mut broken = Vec::new();
    for source in all().iter().filter(|source| source.path.ends_with(".md")) {
        let folder = root()
            .join(&source.path)
            .parent()
            .expect("a folder")
            .to_owned();
        for found in link.captures_iter(&source.text) {
            let target = &found[1];
            if !target.contains("://")
                && !target.starts_with("mailto:")
                && !folder.join(target).exists()
            {
                broken.push(format!("{}: {target}", source.path));
            }
        }
    }
    assert_none("broken links:", &broken);
}

#[test]
fn the_image_builds_packages_that_exist() {
    let metadata = crate::dependencies::metadata(&["--no-deps"]);
    let packages: Vec<&str> = metadata["packages"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let dockerfile = read("Dockerfile");
    let mut named = dockerfile
        .split("--package ")
        .skip(1)
        .filter_map(|rest| rest.split_whitespace().next())
        .peekable();
    assert!(named.peek().is_some(), "the Dockerfile names its packages");
    let unknown: Vec<String> = named
        .filter(|name| !packages.contains(name))
        .map(str::to_owned)
        .collect();
    assert_none(
        "the Dockerfile builds packages that do not exist:",
        &unknown,
    );
}

/// A patch that does not apply proves nothing, and is noticed only when all mutants are run.
#[test]
fn the_patch_of_every_mutant_applies() {
    let folder = std::fs::read_dir(root().join("tests/mutants")).expect("the mutants");
    let mut broken = Vec::new();
    for patch in folder {
        let patch = patch.expect("an entry").path();
        let checked = std::process::Command::new("git")
            .current_dir(root())
            .args(["apply", "--check"])
            .arg(&patch)
            .output()
            .expect("git runs");
        if !checked.status.success() {
            broken.push(String::from_utf8_lossy(&checked.stderr).into_owned());
        }
    }
    assert_none(
        "renew these patches, so that they plant the same fault:",
        &broken,
    );
}

/// Where tests may sleep: between two checks of a condition, and where taking time is what is tested.
const SLEEPERS: &[&str] = &[
    "tests/src/wait.rs",
    "tests/kit/src/wait.rs",
    "tests/misbehave/src/",
    "tests/tests/scenarios/waits.rs",
    "handler-sdk/tests/rules.rs",
];

#[test]
fn tests_wait_for_conditions() {
    let of_tests = |path: &str| path.starts_with("tests/") || path.contains("/tests");
    let mut broken = Vec::new();
    for source in rust() {
        let may = SLEEPERS.iter().any(|path| source.path.starts_with(path));
        let held = source.path.starts_with("xtask/tests/tidy/");
        if may || held {
            continue;
        }
        let is_test = source.is_test() || of_tests(&source.path);
        // In other files, the tests are at the end.
        let begin = match source.text.find("#[cfg(test)]\nmod tests {") {
            _ if is_test => 0,
            Some(at) => source.text[..at].lines().count(),
            None => continue,
        };
        for (number, line) in (1..).zip(source.text.lines()).skip(begin) {
            // Not methods of that name.
            let line = line.replace(".sleep(", "");
            if line.contains("sleep(") || line.contains("thread::sleep") {
                broken.push(format!("{}:{number}", source.path));
            }
        }
    }
    assert_none(
        "wait for the condition with a deadline (`wait_for`, `stays`):",
        &broken,
    );
}
