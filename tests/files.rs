use std::{fs, io::Write};

use warpo::files::{folder_whole, remove_folder, remove_parts, write_whole};

#[test]
fn a_failed_folder_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("checkpoint-1");
    let failed = folder_whole(&target, |folder| {
        fs::write(folder.join("a"), "half").unwrap();
        anyhow::bail!("disk full")
    });
    assert!(failed.is_err());
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn leftovers_are_removed_and_the_rest_stays() {
    let place = tempfile::tempdir().unwrap();
    folder_whole(&place.path().join("checkpoint-1"), |folder| Ok(fs::write(folder.join("a"), "whole")?)).unwrap();
    write_whole(&place.path().join("b"), |file| Ok(file.write_all(b"whole")?)).unwrap();
    fs::create_dir(place.path().join("checkpoint-2.part")).unwrap();
    fs::write(place.path().join("b.part"), "half").unwrap();
    remove_parts(place.path()).unwrap();
    let mut names: Vec<_> = fs::read_dir(place.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["b", "checkpoint-1"]);
    remove_folder(&place.path().join("checkpoint-1")).unwrap();
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
}

/// What is written in any order is read in any pieces; a file with bytes left out does not appear.
#[test]
fn tensors_go_in_pieces() {
    use warpo::files::safetensors::{self, Dtype, Reader, Spec};

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let spec = |name: &str, dtype, len| Spec { name: name.into(), dtype, shape: vec![len] };
    let specs = [spec("a", Dtype::U8, 5), spec("b", Dtype::F32, 2)];
    let about = std::collections::HashMap::from([("made".to_owned(), "here".to_owned())]);
    safetensors::write(&path, Some(about), &specs, |file| {
        file.write(1, 4, &2f32.to_le_bytes())?;
        file.write(0, 0, &[1, 2, 3, 4, 5])?;
        file.write(1, 0, &1f32.to_le_bytes())
    })
    .unwrap();
    let file = Reader::open(path.clone()).unwrap();
    assert_eq!(
        (file.names(), file.about("made"), file.about("by")),
        (vec!["a".into(), "b".into()], Some("here"), None)
    );
    let mut bytes = [0; 3];
    file.read("a", 2, &mut bytes).unwrap();
    assert_eq!(bytes, [3, 4, 5]);
    let why = file.read("a", 3, &mut bytes).unwrap_err().to_string();
    assert!(why.ends_with("a.safetensors: tensor `a`: ends before byte 6"), "{why}");
    let why = file.read("c", 0, &mut bytes).unwrap_err().to_string();
    assert!(why.ends_with("a.safetensors: tensor `c` is missing"), "{why}");

    let place = file.place("b").unwrap();
    assert_eq!(fs::read(&path).unwrap()[place.start as usize..place.end as usize], [0, 0, 128, 63, 0, 0, 0, 64]);
    let other = folder.path().join("b.safetensors");
    let short = safetensors::write(&other, None, &specs, |file| file.write(0, 0, &[1, 2, 3, 4, 5])).unwrap_err();
    assert!(format!("{short:#}").contains("bytes were written of"), "{short:#}");
    let long = safetensors::write(&other, None, &specs, |file| file.write(0, 1, &[1, 2, 3, 4, 5])).unwrap_err();
    assert!(format!("{long:#}").contains("tensor 0 ends before byte 6"), "{long:#}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
