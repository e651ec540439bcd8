"""The customers of made telecom tasks: 2,000 people, each the same in every task, whose rows take the place of tau2's own.

tau2's database has four customers, and all of its tasks are about one of them. Its plans stay; names, numbers and ids of the
people here are none of tau2's.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any

FIRST = (
    "Ada", "Bruno", "Carla", "Dmitri", "Elena", "Farid", "Greta", "Hassan", "Ingrid", "Jorge", "Keiko", "Lars", "Marta", "Nikhil",
    "Olga", "Pedro", "Quinn", "Rosa", "Stefan", "Talia", "Umar", "Vera", "Walter", "Ximena", "Yusuf", "Zoe", "Anton", "Bianca",
    "Cyrus", "Dana", "Emil", "Flora", "Gideon", "Hanna", "Ivan", "Judith", "Karim", "Leila", "Milan", "Nora",
)  # fmt: skip
LAST = (
    "Abbott", "Berg", "Castillo", "Dorsey", "Eklund", "Farrell", "Grant", "Haddad", "Iverson", "Jansen", "Kowalski", "Lindqvist",
    "Moreno", "Novak", "Okafor", "Petrov", "Quigley", "Ramos", "Schneider", "Tanaka", "Ueda", "Vargas", "Whitfield", "Xu",
    "Yilmaz", "Zhang", "Ashford", "Blake", "Cortez", "Delgado", "Ellison", "Fischer", "Gupta", "Holm", "Ibrahim", "Joyce", "Kemp",
    "Larsen", "Mbeki", "Nair", "Osborne", "Patel", "Reyes", "Sandoval", "Thorne", "Underhill", "Volkov", "Weber", "Yates",
    "Zeller",
)  # fmt: skip
NUM_PEOPLE = len(FIRST) * len(LAST)
PLANS = ("P1001", "P1002", "P1004")  # of phones; a plan of 999 GB is never used up
MODELS = ("Galaxy S23", "Pixel 7", "iPhone 14", "OnePlus 11", "Smartphone X", "Smartphone Lite")
STREETS = ("Maple Street", "Cedar Avenue", "Hillcrest Drive", "Willow Lane", "Birch Road", "Lakeview Drive", "Orchard Way")
CITIES = (("Portland", "OR", "97201"), ("Tucson", "AZ", "85701"), ("Madison", "WI", "53703"), ("Albany", "NY", "12207"))
MONTHS = {"October 2024": ("2024-10", 31), "November 2024": ("2024-11", 30), "December 2024": ("2024-12", 31)}
NEXT_MONTH = ("2025-03", 31)  # of the draft bill: tau2 gives a new one a random id, and no two replays would end the same


@dataclass(frozen=True, slots=True, kw_only=True)
class TelecomPerson:
    """A customer with lines and bills: `person(17)`."""

    customer_id: str
    name: str
    born: str  # "1985-06-15"
    lines: tuple[dict[str, Any], ...]  # 2 or 3 rows, all active, none past its plan's data
    bills: dict[str, float]  # month -> total of a paid bill, all with three digits before the point, no two the same
    paid_bill_id: str
    overdue_bill_id: str  # of a bill that a task may add
    tables: dict[str, list[dict[str, Any]]]  # tau2's `agent_data`


@functools.lru_cache(maxsize=NUM_PEOPLE)
def person(number: int) -> TelecomPerson:
    """Customer `number` of `NUM_PEOPLE`.

    >>> person(0).name, person(0).customer_id, person(0).lines[0]["phone_number"]
    ('Ada Abbott', 'C2000', '555-200-0000')
    """
    rng = random.Random(f"telecom/person/{number}")
    name = f"{FIRST[number % len(FIRST)]} {LAST[number // len(FIRST)]}"
    customer_id = f"C{2000 + number}"
    born = f"{rng.randint(1945, 2004)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    lines = tuple(_line(number, place, rng) for place in range(rng.choice((2, 3))))
    devices = [_device(line["device_id"], rng) for line in lines]
    totals = rng.sample(range(10001, 30000), len(MONTHS))
    totals = [cents + (cents % 10 == 0) for cents in totals]
    bills = {month: cents / 100 for month, cents in zip(MONTHS, totals, strict=True)}
    ids = [f"B{20000000 + 10 * number + place}" for place in range(len(MONTHS) + 2)]
    rows = [_bill(id, customer_id, *MONTHS[month], total, "Paid") for id, (month, total) in zip(ids, bills.items(), strict=False)]
    rows.append(_bill(ids[-2], customer_id, *NEXT_MONTH, 0.0, "Draft"))
    customer = {
        "customer_id": customer_id,
        "full_name": name,
        "date_of_birth": born,
        "email": f"{name.lower().replace(' ', '.')}@example.com",
        "phone_number": lines[0]["phone_number"],
        "address": _address(rng),
        "account_status": "Active",
        "payment_methods": [_payment_method(rng)],
        "line_ids": [line["line_id"] for line in lines],
        "bill_ids": [row["bill_id"] for row in rows],
        "created_at": f"20{rng.randint(15, 23)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T10:30:00",
    }
    return TelecomPerson(
        customer_id=customer_id,
        name=name,
        born=born,
        lines=lines,
        bills=bills,
        paid_bill_id=ids[0],
        overdue_bill_id=ids[-1],
        tables={"customers": [customer], "lines": list(lines), "devices": devices, "bills": rows},
    )


def _line(number: int, place: int, rng: random.Random) -> dict[str, Any]:
    id, digits = 2000 + 3 * number + place, f"{2000000 + 1237 * (3 * number + place)}"
    return {
        "line_id": f"L{id}",
        "phone_number": f"555-{digits[:3]}-{digits[3:]}",
        "status": "Active",
        "plan_id": rng.choice(PLANS),
        "device_id": f"D{id}",
        "data_used_gb": rng.randint(5, 40) / 10,  # the smallest plan has 5 GB
        "data_refueling_gb": 0.0,
        "roaming_enabled": rng.random() < 0.5,
        "contract_end_date": f"{rng.choice((2026, 2027))}-{rng.randint(1, 12):02}-28",
        "last_plan_change_date": f"2024-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
    }


def _device(id: str, rng: random.Random) -> dict[str, Any]:
    return {
        "device_id": id,
        "device_type": "phone",
        "model": rng.choice(MODELS),
        "imei": f"{rng.randrange(10**14, 10**15)}",
        "is_esim_capable": True,
        "activated": True,
        "activation_date": f"2024-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T10:15:00",
    }


def _bill(id: str, customer_id: str, month: str, days: int, total: float, status: str) -> dict[str, Any]:
    item = {"description": "Monthly charges of all lines", "amount": total, "date": f"{month}-01", "item_type": "Charge"}
    return {
        "bill_id": id,
        "customer_id": customer_id,
        "period_start": f"{month}-01",
        "period_end": f"{month}-{days}",
        "issue_date": f"{month}-01",
        "total_due": total,
        "due_date": f"{month}-15",
        "line_items": [item] if total else [],
        "status": status,
    }


def _address(rng: random.Random) -> dict[str, str]:
    city, state, zip_code = rng.choice(CITIES)
    return {"street": f"{rng.randint(1, 999)} {rng.choice(STREETS)}", "city": city, "state": state, "zip_code": zip_code}


def _payment_method(rng: random.Random) -> dict[str, str]:
    return {
        "method_type": rng.choice(("Credit Card", "Debit Card", "PayPal")),
        "account_number_last_4": f"{rng.randrange(10000):04}",
        "expiration_date": f"{rng.randint(1, 12):02}/{rng.choice((2026, 2027, 2028))}",
    }
