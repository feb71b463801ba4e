//! Headers of safetensors files: which tensors there are, how large, and whether the files are whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::checkpoint::read_json;
use crate::failure::Failure;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// The format's own limit for the JSON header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Size of a checkpoint's tensors, whatever type the shard computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WeightTotals {
    pub(crate) elements: u64,
    pub(crate) bytes: u64,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Tensor {
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Sums the tensors of a model folder. Every file that the index names must be there, whole, and hold its tensors.
pub(crate) fn inspect(folder: &Path) -> Result<WeightTotals, Failure> {
    let mut totals = WeightTotals::default();
    let index = folder.join(INDEX);
    if !index.is_file() {
        if !folder.join(SINGLE).is_file() {
            return Err(Failure::Model(no_weights(folder)));
        }
        for tensor in read_header(&folder.join(SINGLE))?.values() {
            totals.add(tensor);
        }
        return Ok(totals);
    }
    for (name, tensors) in tensors_by_file(&index)? {
        let header = read_header(&folder.join(&name))?;
        for tensor in tensors {
            let found = header.get(&tensor).ok_or_else(|| {
                Failure::Model(format!(
                    "{} says that {tensor} is in {name}, but it is not",
                    index.display()
                ))
            })?;
            totals.add(found);
        }
    }
    Ok(totals)
}

/// Judges the names of files in an index, where there is one, before anything is fetched by them.
pub(crate) fn check_index(folder: &Path) -> Result<(), Failure> {
    let index = folder.join(INDEX);
    if index.is_file() {
        tensors_by_file(&index)?;
    }
    Ok(())
}

impl WeightTotals {
    fn add(&mut self, tensor: &Tensor) {
        let elements = tensor
            .shape
            .iter()
            .fold(1, |product: u64, &size| product.saturating_mul(size));
        self.elements = self.elements.saturating_add(elements);
        self.bytes = self
            .bytes
            .saturating_add(tensor.data_offsets.1 - tensor.data_offsets.0);
    }
}

fn tensors_by_file(index: &Path) -> Result<BTreeMap<String, Vec<String>>, Failure> {
    let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, file) in read_json::<Index>(index)?.weight_map {
        // A name is one plain component: an index cannot make us open a file elsewhere.
        let mut parts = Path::new(&file).components();
        if !matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(_)), None)
        ) {
            return Err(Failure::Model(format!(
                "{} names {file:?}, which is not a plain file name",
                index.display()
            )));
        }
        files.entry(file).or_default().push(tensor);
    }
    if files.is_empty() {
        return Err(Failure::Model(format!(
            "{} names no weights",
            index.display()
        )));
    }
    Ok(files)
}

/// The header of one file, checked against the file's length.
fn read_header(path: &Path) -> Result<BTreeMap<String, Tensor>, Failure> {
    let broken = |why: String| Failure::Model(format!("{} is broken: {why}", path.display()));
    let mut file = File::open(path)
        .map_err(|error| Failure::Model(format!("cannot read {}: {error}", path.display())))?;
    let file_bytes = file
        .metadata()
        .map_err(|error| broken(error.to_string()))?
        .len();
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix)
        .map_err(|_| broken("it is shorter than 8 bytes".to_owned()))?;
    if &prefix == b"version " {
        return Err(broken(
            "it is a Git LFS pointer, not the weights; run `git lfs pull` in the folder".to_owned(),
        ));
    }
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER_BYTES || header_bytes + 8 > file_bytes {
        return Err(broken(format!(
            "a header of {header_bytes} bytes does not fit its {file_bytes} bytes"
        )));
    }
    let mut header = Vec::new();
    file.take(header_bytes)
        .read_to_end(&mut header)
        .map_err(|error| broken(error.to_string()))?;
    let tensors = parse_header(&header).map_err(&broken)?;
    let data_bytes = file_bytes - 8 - header_bytes;
    let needed = tensors
        .values()
        .map(|tensor| tensor.data_offsets.1)
        .max()
        .unwrap_or(0);
    if needed > data_bytes {
        return Err(broken(format!(
            "its header promises {needed} bytes of weights and {data_bytes} follow; was a download cut off?"
        )));
    }
    Ok(tensors)
}

fn parse_header(text: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
    let values: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(text).map_err(|error| format!("its header is not JSON: {error}"))?;
    let mut tensors = BTreeMap::new();
    for (name, value) in values {
        if name == "__metadata__" {
            continue;
        }
        let tensor: Tensor = serde_json::from_value(value)
            .map_err(|error| format!("its header's entry {name}: {error}"))?;
        if tensor.data_offsets.0 > tensor.data_offsets.1 {
            return Err(format!("its header's entry {name} ends before it begins"));
        }
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

fn no_weights(folder: &Path) -> String {
    let shown = folder.display();
    let pickled = fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            Path::new(&name)
                .extension()
                .is_some_and(|ending| ending == "bin" || ending == "pt" || ending == "pth")
        })
    });
    if pickled {
        return format!(
            "{shown} holds its weights as pickle files (.bin, .pt), which can run any code and are refused. Convert them: \
             python -c \"from transformers import AutoModelForCausalLM as M; \
             M.from_pretrained('{shown}').save_pretrained('{shown}')\""
        );
    }
    format!("{shown} has no weights: neither {INDEX} nor {SINGLE}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, tensors: &[(&str, u64)]) {
        let mut offset = 0;
        let mut header = serde_json::Map::new();
        header.insert(
            "__metadata__".to_owned(),
            serde_json::json!({"format": "pt"}),
        );
        for (tensor, rows) in tensors {
            let end = offset + rows * 4;
            header.insert((*tensor).to_owned(), serde_json::json!({"dtype": "BF16", "shape": [rows, 2], "data_offsets": [offset, end]}));
            offset = end;
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut bytes = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend(&header);
        bytes.resize(bytes.len() + usize::try_from(offset).unwrap(), 0);
        fs::write(folder.join(name), bytes).unwrap();
    }

    fn refusal(folder: &Path) -> String {
        match inspect(folder) {
            Err(Failure::Model(text)) => text,
            other => panic!("not refused as a model: {other:?}"),
        }
    }

    #[test]
    fn totals_of_one_file_and_of_an_index() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), SINGLE, &[("a", 3), ("b", 5)]);
        assert_eq!(
            inspect(folder.path()).unwrap(),
            WeightTotals {
                elements: 16,
                bytes: 32
            }
        );
        write(folder.path(), "x.safetensors", &[("a", 3), ("unused", 50)]);
        fs::write(
            folder.path().join(INDEX),
            r#"{"metadata":{},"weight_map":{"a":"x.safetensors"}}"#,
        )
        .unwrap();
        assert_eq!(
            inspect(folder.path()).unwrap(),
            WeightTotals {
                elements: 6,
                bytes: 12
            }
        );
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let index = |text: &str| fs::write(folder.path().join(INDEX), text).unwrap();
        index(r#"{"weight_map":{"a":"missing.safetensors"}}"#);
        assert!(refusal(folder.path()).contains("missing.safetensors"));
        write(folder.path(), "x.safetensors", &[("a", 3)]);
        index(r#"{"weight_map":{"b":"x.safetensors"}}"#);
        assert!(refusal(folder.path()).contains("says that b is in x.safetensors, but it is not"));
        for outside in ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", ".."] {
            index(&format!(r#"{{"weight_map":{{"a":"{outside}"}}}}"#));
            assert!(
                refusal(folder.path()).contains("not a plain file name"),
                "{outside}"
            );
        }
        index(r#"{"weight_map":{}}"#);
        assert!(refusal(folder.path()).contains("names no weights"));
    }

    #[test]
    fn a_file_that_is_not_whole_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SINGLE);
        write(folder.path(), SINGLE, &[("a", 30)]);
        let whole = fs::read(&path).unwrap();
        for (bytes, word) in [
            (&whole[..whole.len() - 1], "cut off"),
            (&whole[..20], "does not fit"),
            (&whole[..3], "shorter than 8 bytes"),
            (b"version https://git-lfs".as_slice(), "git lfs pull"),
            (b"\x02\0\0\0\0\0\0\0[]".as_slice(), "not JSON"),
        ] {
            fs::write(&path, bytes).unwrap();
            assert!(refusal(folder.path()).contains(word), "{word}");
        }
    }

    #[test]
    fn pickles_are_refused_with_the_way_to_convert() {
        let folder = tempfile::tempdir().unwrap();
        assert!(refusal(folder.path()).contains("has no weights"));
        fs::write(folder.path().join("pytorch_model.bin"), "x").unwrap();
        assert!(refusal(folder.path()).contains("save_pretrained"));
    }
}
