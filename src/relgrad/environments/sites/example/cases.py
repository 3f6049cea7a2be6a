"""`python -m relgrad.environments.sites.example.cases`: the cases of the example site, as cases.jsonl has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

CASES = 24
"""Cases a page."""

FIRST = [
    "Ada",
    "Ben",
    "Cleo",
    "Dara",
    "Emil",
    "Fay",
    "Gus",
    "Hana",
    "Ivo",
    "Jule",
    "Kemal",
    "Lena",
    "Milo",
    "Nora",
    "Otto",
    "Pia",
    "Quin",
    "Rosa",
    "Sami",
    "Tess",
]
LAST = [
    "Abel",
    "Brandt",
    "Cohen",
    "Diaz",
    "Ekberg",
    "Fuchs",
    "Grant",
    "Hoang",
    "Ibsen",
    "Jansen",
    "Kaya",
    "Lind",
    "Moreau",
    "Novak",
    "Okafor",
    "Petit",
]
TOWNS = [
    "Mill Lane",
    "Harbour Road",
    "Oak Street",
    "Church Hill",
    "Station Road",
    "Bridge Street",
    "Garden Row",
    "North Quay",
]
COLOURS = ["red", "blue", "green", "purple", "orange", "navy", "teal"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
REASONS = [
    "a cough that does not go away",
    "a check of the left knee",
    "a travel vaccination",
    "pain in the shoulder",
    "new glasses",
]
WISHES = ["a quiet room", "a cot for the baby", "late arrival", "a view of the sea", "no feathers, please"]
SUBJECTS = ["Opening hours", "A question about my bill", "Lost scarf", "Interview request", "Broken link"]
TOOLS = ["Drill", "Ladder", "Cement mixer", "Hedge trimmer", "Tile cutter", "Pressure washer"]


class Draw:
    """Values for one case."""

    def __init__(self, key: str) -> None:
        self.random = Random(key)
        self.first, self.last = self.one(FIRST), self.one(LAST)

    def one(self, values: Any) -> Any:
        return self.random.choice(list(values))

    def some(self, values: list[str]) -> list[str]:
        chosen = set(self.random.sample(values, self.random.randint(1, len(values) - 1)))
        return [value for value in values if value in chosen]

    def whole(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"

    @property
    def mail(self) -> str:
        host = self.one(["mail", "post", "inbox"])
        return f"{self.first}.{self.last}@{host}.org".lower()

    @property
    def phone(self) -> str:
        return f"0{self.whole(20, 79)} {self.whole(100000, 999999)}"

    def day(self, low: int = 2024, high: int = 2026) -> str:
        year, month, day = self.whole(low, high), self.whole(1, 12), self.whole(1, 28)
        return self.one(
            [f"{year}-{month:02d}-{day:02d}", f"{MONTHS[month - 1]} {day}, {year}", f"{year}/{month:02d}/{day:02d}"]
        )

    def money(self) -> float:
        return self.whole(200, 90000) / 100


PAGES: dict[str, Callable[[Draw], dict[str, Any]]] = {
    "library-card": lambda d: {
        "Full Name": d.name, "Email Address": d.mail, "Date of Birth": d.day(1950, 2010),
        "Home Branch": d.one(["Central", "North Side", "Harbour"]), "I accept the house rules": True,
    },
    "clinic-appointment": lambda d: {
        "Patient name": d.name, "Phone": d.phone, "Day": d.day(), "Time": f"{d.whole(8, 17):02d}:{d.one(['00', '15', '30', '45'])}",
        "Visit type": d.one(["First visit", "Follow-up", "Vaccination"]), "Reason for the visit": d.one(REASONS),
    },
    "shop-order": lambda d: {
        "Item": d.one(["Green tea", "Black tea", "Mint tea"]), "Quantity": d.whole(1, 40), "Ribbon colour": d.one(COLOURS),
        "Extras": d.some(["Gift wrap", "Greeting card", "Tea spoon"]), "Delivery address": f"{d.whole(1, 99)} {d.one(TOWNS)}",
    },
    "job-application": lambda d: {
        "Applicant name": d.name, "E-mail": d.mail, "Position": d.one(["Baker", "Driver", "Bookkeeper", "Gardener"]),
        "Years of experience": d.whole(0, 30), "Website": f"https://{d.last}.example/".lower(), "CV": f"{d.last}.pdf".lower(),
    },
    "event-registration": lambda d: {
        "Your name": d.name,
        **d.one([{"Ticket": "Day ticket"}, {"Ticket": "Weekend ticket", "Nights on site": d.whole(0, 3)}]),
        **d.one([{"I bring guests": False}, {"I bring guests": True, "Number of guests": d.whole(1, 9)}]),
    },
    "contact": lambda d: {
        "Your name": d.name, "Email": d.mail, "Subject": d.one(SUBJECTS), "How can we help?": d.one(WISHES),
        "Topic": d.one(["General", "Billing", "Press"]),
    },
    "tool-rental": lambda d: {
        "Account Type": d.one(["Private", "Trade"]), "Tool": d.one(TOOLS), "From": d.day(),
        "Rental Term (days)": d.one(["1 day", "3 days", "7 days"]), "Deposit ($)": d.money(),
    },
    "school-trip": lambda d: {
        "Child": {"Name": d.one(FIRST), "Class": f"{d.whole(1, 6)}{d.one('abc')}"}, "Parent": {"Name": d.name, "Phone": d.phone},
        "Meals": d.some(["Breakfast", "Lunch", "Dinner", "Snacks"]), "Swimming level": d.whole(0, 10),
        "Photos may be taken": d.one([True, False]),
    },
    "gym-membership": lambda d: {
        "First name": d.first, "Last name": d.last, "Plan": d.one(["Basic", "Plus", "All inclusive"]),
        "Pay": d.one(["Monthly", "Yearly"]),
        "Start month": f"{d.one(MONTHS)} {d.whole(2024, 2026)}", "I have read the terms": True,
    },
    "hotel-booking": lambda d: {
        "Guest name": d.name, "Arrival": d.day(), "Nights": d.whole(1, 14),
        "Room": d.one(["Single room", "Double room", "Family room"]),
        "Breakfast included": d.one([True, False]), "Wishes": d.one(WISHES),
    },
    "insurance-claim": lambda d: {
        "Policy Number": f"{d.one('ABCDEFG')}{d.whole(100000, 999999)}", "Policy Holder": d.name, "Continue": {"click": True},
        "Date of Damage": d.day(), "Claim Amount": d.money(), "Kind of Damage": d.one(["Water", "Fire", "Theft"]),
    },
    "garden-plot": lambda d: {
        "Gardener": d.name, "Plot size": d.one(["Small", "Medium", "Large"]), "Member since": d.day(2001, 2023),
        "Water": d.whole(5, 80), "Shed wanted": d.one([True, False]),
    },
    "course-enrolment": lambda d: {
        "Student": d.name, "E-mail": d.mail, "Course": d.one(["Pottery I", "Pottery II", "Weaving"]),
        "Days that suit you": d.some(["Monday", "Wednesday", "Friday"]), "Level": d.whole(1, 5),
    },
}  # fmt: skip


def main() -> None:
    """Print all cases."""
    for page, values in PAGES.items():
        for number in range(CASES):
            print(json.dumps({"page": f"/{page}", "values": values(Draw(f"{page}/{number}"))}))


if __name__ == "__main__":
    main()
