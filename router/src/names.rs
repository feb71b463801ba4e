//! The names by which requests may ask for the model, and the one that answers carry.

use crate::config::RouterConfig;

/// What clients made for TGI send whatever is served; the second is `huggingface_hub`'s when it is given an address.
const ANY: [&str; 2] = ["tgi", "dummy"];

/// One model's names.
#[derive(Clone, Debug)]
pub struct ModelNames {
    served: String,
    accepted: Vec<String>,
}

impl ModelNames {
    /// Answers carry `--served-model-name`, or `model_name` without it. Accepted are these, what `--model-id` says, the
    /// last part of each path, and what stands for any model.
    pub fn new(config: &RouterConfig, model_name: &str) -> Self {
        let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        let served = given(&config.http.served_model_name);
        let own = [Some(model_name.to_owned()), given(&config.model.model_id)];
        let mut accepted = Vec::from(ANY.map(str::to_owned));
        accepted.extend(served.clone());
        for name in own.into_iter().flatten() {
            accepted.extend(last_part(&name));
            accepted.push(name);
        }
        Self {
            served: served.unwrap_or_else(|| model_name.to_owned()),
            accepted,
        }
    }

    /// The name in answers.
    pub fn served(&self) -> &str {
        &self.served
    }

    /// A request may call the model so.
    pub fn accept(&self, name: &str) -> bool {
        self.accepted.iter().any(|accepted| accepted == name)
    }
}

fn last_part(name: &str) -> Option<String> {
    let last = name.trim_end_matches('/').rsplit('/').next()?;
    (!last.is_empty()).then(|| last.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        config: RouterConfig,
    }

    fn names(flags: &[&str], model_name: &str) -> ModelNames {
        let needed = ["router", "--model-path", "/m/tiny", "--shard-socket", "s"];
        let flags = Flags::parse_from(needed.iter().chain(flags));
        ModelNames::new(&flags.config, model_name)
    }

    fn check(names: &ModelNames, served: &str, accepted: &[&str]) {
        assert_eq!(names.served(), served);
        for name in accepted {
            assert!(names.accept(name), "{name}");
        }
        for name in ["", "gpt-4", "/", "org", "TGI"] {
            assert!(!names.accept(name), "{name}");
        }
    }

    #[test]
    fn a_folder_goes_by_its_path_and_its_last_part() {
        let without = names(&[], "tiny");
        check(&without, "tiny", &["tgi", "dummy", "tiny"]);
        let id = names(&["--model-id", "/models/org/tiny/"], "tiny");
        check(&id, "tiny", &["tgi", "tiny", "/models/org/tiny/"]);
    }

    #[test]
    fn a_served_name_is_one_more() {
        let flags = ["--served-model-name", "pet", "--model-id", "org/tiny"];
        let pet = names(&flags, "org/tiny");
        check(&pet, "pet", &["tgi", "pet", "org/tiny", "tiny"]);
        let empty = names(&["--served-model-name", ""], "org/tiny");
        check(&empty, "org/tiny", &["tgi", "org/tiny", "tiny"]);
    }
}
