use super::{super::policy::S3Fifo, *};
use crate::geometry::Sizes;

/// Regions of two units of two blocks.
fn geometry(regions: u64) -> Geometry {
    let sizes = Sizes::new(1024, 512, 3072, 512);
    let sizes = sizes.with_region(2048).with_read_percent(90);
    let blocks = 2 + 18 + 4 * regions;
    let geometry = Geometry::new(512, blocks * 512, &sizes).expect("a layout");
    assert_eq!(u64::from(geometry.regions), regions);
    geometry
}

fn shelf(regions: u64) -> Shelf {
    let geometry = geometry(regions);
    let policy = S3Fifo::new(index(geometry.store_units()));
    Shelf::new(geometry, Box::new(policy))
}

fn span(unit: u64, units: u64) -> Span {
    Span {
        start: unit * 2,
        count: units * 2,
    }
}

/// Puts a unit into a queue; gives its place.
fn put(shelf: &mut Shelf, queue: Queue, unit: u32) -> u32 {
    let token = shelf.permit(span(unit.into(), 1)).expect("no change");
    let room = shelf.take(queue, 1).expect("room");
    shelf.publish(token, &[(unit, room.place, unit * 10)]);
    shelf.unpin(room.region);
    room.place
}

#[test]
fn unit_is_found_where_it_was_written() {
    let mut shelf = shelf(4);
    let place = put(&mut shelf, Queue::Small, 5);
    let hit = shelf.find(5).expect("published");
    assert_eq!((hit.at, hit.crc), (shelf.at(place), 50));
    assert_eq!(shelf.at(place), geometry(4).region_at(hit.region));
    assert_eq!((shelf.find(6), shelf.units()), (None, 1));
}

#[test]
fn write_drops_what_it_touches_and_voids_permissions() {
    let mut shelf = shelf(4);
    put(&mut shelf, Queue::Small, 5);
    // The zoo's read-fill race: the read has looked, the write comes, the read's data is old.
    let old = shelf.permit(span(6, 1)).expect("nothing is changing");
    let (change, kept) = shelf.begin_change(Span {
        start: 11,
        count: 2,
    });
    assert_eq!(
        (kept, shelf.find(5)),
        (vec![5], None),
        "a part of it is enough"
    );
    assert_eq!(shelf.permit(span(6, 1)), None, "while it is on its way");
    assert!(shelf.permit(span(8, 1)).is_some(), "elsewhere");
    assert_eq!(shelf.end_change(change, None), None);
    let room = shelf.take(Queue::Small, 1).expect("room");
    shelf.publish(old, &[(6, room.place, 1)]);
    assert_eq!(shelf.find(6), None, "B3");
    assert!(shelf.permit(span(6, 1)).is_some());
}

#[test]
fn what_was_written_is_kept_unless_another_write_is_on_its_way() {
    let mut shelf = shelf(4);
    let (one, _) = shelf.begin_change(span(3, 1));
    let (other, _) = shelf.begin_change(span(3, 1));
    assert_eq!(shelf.end_change(one, Some(span(3, 1))), None);
    assert!(shelf.end_change(other, Some(span(3, 1))).is_some());
}

#[test]
fn survivors_move_unless_they_are_dropped_meanwhile() {
    let mut shelf = shelf(4);
    let from = [
        put(&mut shelf, Queue::Small, 1),
        put(&mut shelf, Queue::Small, 2),
    ];
    put(&mut shelf, Queue::Small, 3);
    put(&mut shelf, Queue::Small, 4);
    assert!(shelf.find(1).is_some() && shelf.find(2).is_some());
    let leaving = shelf.leave().expect("a full region");
    // Three of four, of two: one.
    assert_eq!(leaving.kept, [(1, from[0], 10)]);
    assert_eq!(shelf.find(2), None, "what goes makes room");
    let room = shelf.take(Queue::Main, 1).expect("a spare region");
    shelf.moved(from[0], (1, room.place, 10));
    assert_eq!(shelf.find(1).expect("moved").at, shelf.at(room.place));
    let (change, _) = shelf.begin_change(span(1, 1));
    shelf.moved(room.place, (1, 7, 10));
    assert_eq!(shelf.find(1), None, "B1");
    shelf.end_change(change, None);
}

#[test]
fn region_is_not_used_again_while_a_reader_is_there() {
    let mut shelf = shelf(4);
    put(&mut shelf, Queue::Small, 1);
    put(&mut shelf, Queue::Small, 2);
    let region = shelf.find(1).expect("there").region;
    shelf.pin(region);
    let leaving = shelf.leave().expect("a full region");
    let free = shelf.free.len();
    shelf.left(&leaving);
    assert_eq!(shelf.free.len(), free, "B2");
    assert_eq!(
        (shelf.find(1), shelf.units()),
        (None, 0),
        "not written again"
    );
    shelf.unpin(region);
    assert_eq!(shelf.free.len(), free + 1);
}

#[test]
fn permissions_are_limited() {
    let mut shelf = shelf(4);
    for unit in 0..TOKENS_MAX as u64 {
        assert!(shelf.permit(span(unit, 1)).is_some());
    }
    assert_eq!(shelf.permit(span(99, 1)), None);
}
