//! Safe code reaches no memory but its buffers': threads that share a device take turns, and indices are looked at first.

use std::thread;

use warpo::{
    device::{Buffer, Device, HostOptions},
    ops::{embedding, head, residual, rope},
};

use crate::support::fast_device;

/// Copies in, launches and copies out of one buffer by several threads: each sees one of the whole states.
#[test]
fn threads_take_turns_at_one_buffer() {
    const ELEMENTS: usize = 4096;
    let device = fast_device(2);
    let shared = device.zeros::<f32>(ELEMENTS).unwrap();
    thread::scope(|scope| {
        for value in [1.0f32, 2.0, 4.0] {
            let (device, shared) = (&device, &shared);
            scope.spawn(move || {
                let own = vec![value; ELEMENTS];
                for _ in 0..50 {
                    device.copy_in(shared, &own).unwrap();
                    residual::add(device, shared, shared, shared, ELEMENTS).unwrap();
                    let seen = device.download(shared).unwrap();
                    assert!(seen.iter().all(|x| *x == seen[0] && *x > 0.0), "half of a write was seen");
                }
            });
        }
    });
}

#[test]
fn another_devices_buffer_is_refused() {
    let [one, other] = [(); 2].map(|()| Device::host(HostOptions::default()).unwrap());
    let (own, foreign) = (one.zeros::<f32>(8).unwrap(), other.zeros::<f32>(8).unwrap());
    let refused = |done: anyhow::Result<()>| {
        let why = done.unwrap_err().to_string();
        assert!(why.contains("a buffer of another device"), "{why}");
    };
    refused(residual::add(&one, &own, &own, &foreign, 8));
    refused(one.copy_in(&foreign, &[1.0]));
    refused(one.copy(&own, &foreign));
    refused(one.fill_zero(&foreign));
    refused(one.download(&foreign).map(drop));
}

#[test]
fn an_index_outside_its_table_is_refused() {
    let device = fast_device(1);
    let (table, y) = (device.zeros::<f32>(4 * 8).unwrap(), device.zeros::<f32>(2 * 8).unwrap());
    let ids = |ids: [i32; 2]| device.upload(&ids).unwrap();
    let look_up = |ids: &Buffer<i32>| embedding::fwd(&device, &y, ids, &table, 1.0, 2, 8, 4);
    look_up(&ids([0, 3])).unwrap();
    for wrong in [-1, 4, 1 << 30] {
        let why = look_up(&ids([0, wrong])).unwrap_err().to_string();
        assert_eq!(why, format!("embedding ids: entry 1 is {wrong}: expected 0..4"));
    }
    // Two threads would add to one row.
    let offsets = device.upload(&[0, 1, 2]).unwrap();
    let why = embedding::bwd(&device, &table, &y, &ids([2, 2]), &offsets, &ids([0, 1]), 1.0, 2, 8, 4).unwrap_err();
    assert!(why.to_string().contains("entry 1 is not more than the one before"), "{why}");
    let out = head::HeadValues::alloc(&device, 2).unwrap();
    let why = head::head_values(&device, &out, &y, &ids([0, 8]), None, 2, 8, 8).unwrap_err().to_string();
    assert_eq!(why, "head targets: entry 1 is 8: expected 0..8");
    let rotary = rope::Rotary { cos: device.zeros(4).unwrap(), sin: device.zeros(4).unwrap() };
    let (qkv, heads) = (device.zeros::<f32>(2 * 12).unwrap(), rope::Heads { heads: 1, kv_heads: 1, head_dim: 4 });
    let why = rope::apply(&device, &qkv, &ids([0, 2]), &rotary, false, &heads).unwrap_err().to_string();
    assert_eq!(why, "rope position: entry 1 is 2: expected 0..2");
}
