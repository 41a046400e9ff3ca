// SPDX-License-Identifier: MIT
pragma solidity ^0.8.20;

/// Emits as many events as a test asks for. It keeps no state, so a call costs the same on every branch of the chain.
contract Emitter {
    event Transfer(address indexed from, address indexed to, uint256 value);
    event Note(bytes32 indexed tag, string text);

    error Refused(uint256 code, string why);

    /// `n` transfers to addresses 1, 2, 3, 1, 2, ... and after every second one a note with the same number.
    function emitMany(uint256 first, uint256 n) external {
        for (uint256 i = first; i < first + n; i++) {
            emit Transfer(msg.sender, address(uint160(1 + (i % 3))), i);
            if (i % 2 == 1) emit Note(bytes32(i), "odd");
        }
    }

    function double(uint256 x) external pure returns (uint256) {
        return 2 * x;
    }

    function refuse(uint256 code) external pure {
        revert Refused(code, "on purpose");
    }

    function refusePlainly() external pure {
        require(false, "plain reason");
    }
}
