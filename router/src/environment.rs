//! The environment as a source of flags; nothing else reads it. Orchestrators put things there that nobody meant for
//! us: an empty variable is an unset one, and the address of a service that is named like a port of ours is not a port.

use std::ffi::{OsStr, OsString};
use std::fmt;

use clap::{Arg, Command, Parser};

/// CUDA's own variable, which our children read too: empty means no GPU.
const MEANT_EMPTY: &str = "CUDA_VISIBLE_DEVICES";

/// A variable with a flag's name whose value is not meant for the flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoredVariable {
    name: String,
    value: String,
}

impl fmt::Display for IgnoredVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, value } = self;
        write!(
            f,
            "{name}={value} in the environment is ignored: that is the address of a service, as Kubernetes sets it, and \
             no port"
        )
    }
}

/// Parses the command line and the environment, or ends the process as clap does. What was ignored is for a warning, as
/// soon as there is a log.
pub fn parse<C: Parser>() -> (C, Vec<IgnoredVariable>) {
    let (mut command, ignored) = prepare(C::command(), |name| std::env::var_os(name));
    let parsed = C::from_arg_matches_mut(&mut command.get_matches_mut());
    match parsed {
        Ok(cli) => (cli, ignored),
        Err(error) => error.format(&mut command).exit(),
    }
}

/// The first of the variables, by name, that is not empty and wanted.
pub fn find(wanted: impl Fn(&str) -> bool) -> Option<String> {
    std::env::vars_os()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| wanted(name))
        .min()
}

/// Takes the variables that do not count away from their flags. Help shows the names of all, and no values: they may be
/// secrets.
fn prepare(
    command: Command,
    value_of: impl Fn(&OsStr) -> Option<OsString>,
) -> (Command, Vec<IgnoredVariable>) {
    let mut ignored = Vec::new();
    let command = command.mut_args(|arg| {
        let arg = arg.hide_env_values(true);
        let Some(name) = arg.get_env().map(OsStr::to_owned) else {
            return arg;
        };
        let Some(value) = value_of(&name) else {
            return arg;
        };
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        if name.ends_with("PORT") && value.starts_with("tcp://") {
            ignored.push(IgnoredVariable {
                name: name.clone().into_owned(),
                value: value.into_owned(),
            });
        } else if !value.is_empty() || name == MEANT_EMPTY {
            return arg;
        }
        without_variable(arg, &name)
    });
    (command, ignored)
}

fn without_variable(arg: Arg, name: &str) -> Arg {
    let help = arg
        .get_help()
        .map(|help| format!("{help} "))
        .unwrap_or_default();
    arg.env(None::<&str>).help(format!("{help}[env: {name}]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let flag = |name: &'static str, variable: &'static str, help: &'static str| {
            Arg::new(name).long(name).env(variable).help(help)
        };
        Command::new("launcher").args([
            flag("port", "A_PORT", "Where to listen"),
            flag("name", "A_NAME", "Who listens"),
            flag("devices", MEANT_EMPTY, "Where to compute"),
        ])
    }

    /// Flags that still have their variable, those whose value is ignored, and the help.
    fn check(value: &str) -> (Vec<String>, Vec<String>, String) {
        let (mut command, ignored) = prepare(command(), |_| Some(value.into()));
        let kept = command
            .get_arguments()
            .filter(|arg| arg.get_env().is_some())
            .map(|arg| arg.get_id().to_string())
            .collect();
        let ignored = ignored.into_iter().map(|variable| variable.name).collect();
        (kept, ignored, command.render_help().to_string())
    }

    #[test]
    fn empty_variables_and_addresses_do_not_count() {
        assert_eq!(check("7").0, ["port", "name", "devices"]);
        assert_eq!(check("").0, ["devices"]);
        assert_eq!(check("").1, [""; 0]);
        assert_eq!(check("tcp://10.0.0.1:80").0, ["name", "devices"]);
        assert_eq!(check("tcp://10.0.0.1:80").1, ["A_PORT"]);
    }

    #[test]
    fn help_names_every_variable_and_no_value() {
        for value in ["77", ""] {
            let help = check(value).2;
            assert!(help.contains("Where to listen [env: A_PORT]"), "{help}");
            assert!(help.contains("[env: A_NAME]"), "{help}");
            assert!(!help.contains("77"), "{help}");
        }
    }
}
