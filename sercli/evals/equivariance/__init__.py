"""Do token maps follow rotations, mirrors and changes of scale?"""
