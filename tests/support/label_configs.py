"""Label configs that tests of several rooms share; those of one stage are in its module."""

BRAIN_CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image">
    <Label value="Brain" prompt="brain"/>
    <Label value="White" prompt="white matter"/>
  </BrushLabels>
</View>
"""

# For images of tests.support.images.disc_file.
BRIGHT_DISC_CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image">
    <Label value="Bright" prompt="bright disc"/>
  </BrushLabels>
</View>
"""

# For phantoms of the kind "fundus".
DISC_AND_CUP_CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image">
    <Label value="Disc" prompt="optic disc"/><Label value="Cup" prompt="optic cup"/>
  </BrushLabels>
</View>
"""
