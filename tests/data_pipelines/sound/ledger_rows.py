"""Ledger entries checked field by field with an own exception class, amounts kept in cents."""

import numpy as np

POLICY = "reject"
KWARGS = {}


class LedgerError(ValueError):
    def __init__(self, number, reason):
        super().__init__(f"entry {number}: {reason}")


def sample():
    return [
        {"account": "4400", "amount": 129.95, "units": 3},
        {"account": "4711", "amount": -40.0, "units": 1},
        {"account": "1200", "amount": 999.99, "units": 12},
        {"account": "8400", "amount": 15.25, "units": 2},
    ]


class Ledger:
    ceiling = 1e9

    def cents(self, number, amount):
        if isinstance(amount, bool) or not isinstance(amount, (int, float)):
            raise LedgerError(number, "amount is no number")
        if not abs(amount) <= self.ceiling:
            raise LedgerError(number, "amount out of range")
        return round(amount * 100)

    def units(self, number, units):
        if not isinstance(units, int):
            raise LedgerError(number, "units must be whole")
        if not 0 <= units < 2**31:
            raise LedgerError(number, "units out of range")
        return units

    def account(self, number, account):
        if not isinstance(account, str) or not (account.isascii() and account.isdigit() and len(account) == 4):
            raise LedgerError(number, "account needs four digits")
        return int(account)

    def __call__(self, entries):
        rows = [
            (self.account(i, e["account"]), self.cents(i, e["amount"]), self.units(i, e["units"]))
            for i, e in enumerate(entries)
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, 3)


def build():
    return Ledger()
