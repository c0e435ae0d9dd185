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
